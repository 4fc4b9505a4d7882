#include "kernels/policy/selection.h"

#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/policy/open_block.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

/// The rows that a rule selects; `offset`: where they stand in the block.
std::vector<int> Chosen(const BlockRule& rule, const std::vector<float>& rank, const std::vector<int32_t>& offset,
                        int32_t count) {
  int32_t above = 0;
  for (const float r : rank) above += r > rule.threshold ? 1 : 0;
  const RankedRows block = {rank.data(), offset.data(), static_cast<int32_t>(rank.size())};
  std::vector<int> rows;
  for (int32_t i = 0; i < block.rows; ++i) {
    if (IsSelected(rule, block, i, count, above)) rows.push_back(i);
  }
  return rows;
}

/// The same of a block whose rows are all masked.
std::vector<int> Chosen(const BlockRule& rule, const std::vector<float>& rank, int32_t count = 1) {
  std::vector<int32_t> offset(rank.size());
  std::iota(offset.begin(), offset.end(), 0);
  return Chosen(rule, rank, offset, count);
}

std::vector<int> Chosen(Policy policy, const std::vector<float>& rank, float threshold, int32_t count) {
  BlockRule rule;
  rule.policy = policy;
  rule.threshold = threshold;
  return Chosen(rule, rank, count);
}

std::vector<int> Best(const std::vector<float>& rank, int32_t count) { return Chosen(Policy::kStatic, rank, 0, count); }

std::vector<int> Dynamic(const std::vector<float>& rank, float threshold, int32_t count) {
  return Chosen(Policy::kDynamic, rank, threshold, count);
}

std::vector<int> Threshold(const std::vector<float>& rank, float threshold) {
  return Chosen(Policy::kThreshold, rank, threshold, 1);
}

std::vector<int> First(int32_t rows, int32_t count) {
  return Chosen(Policy::kSequential, std::vector<float>(static_cast<size_t>(rows), 0.0f), 0, count);
}

TEST(ScheduledCountTest, SpreadsMasksWithTheLargerCountsFirst) {
  EXPECT_EQ(ScheduledCount(10, 4, 0), 3);
  EXPECT_EQ(ScheduledCount(10, 4, 1), 3);
  EXPECT_EQ(ScheduledCount(10, 4, 2), 2);
  EXPECT_EQ(ScheduledCount(10, 4, 3), 2);
  EXPECT_EQ(ScheduledCount(10, 4, 4), 0);
}

TEST(ScheduledCountTest, SumsToTheMasksAndDescendsByAtMostOne) {
  for (int32_t masks = 0; masks <= 40; ++masks) {
    for (int32_t steps = 1; steps <= 45; ++steps) {
      int32_t sum = 0;
      for (int32_t s = 0; s < steps; ++s) {
        sum += ScheduledCount(masks, steps, s);
        EXPECT_GE(ScheduledCount(masks, steps, 0), ScheduledCount(masks, steps, s));
        EXPECT_LE(ScheduledCount(masks, steps, 0) - ScheduledCount(masks, steps, s), 1);
      }
      EXPECT_EQ(sum, masks);
    }
  }
}

TEST(SelectBestTest, TakesTheHighestAndBreaksTiesByPosition) {
  EXPECT_THAT(Best({0.2f, 0.6f, 0.6f, 0.1f, 0.6f}, 2), ElementsAre(1, 2));
  EXPECT_THAT(Best({0.2f, 0.1f}, 1), ElementsAre(0));
}

TEST(SelectBestTest, ClampsToTheRowsThereAre) { EXPECT_THAT(Best({0.2f, 0.1f}, 7), ElementsAre(0, 1)); }

TEST(SelectBestTest, ARowRankedLastIsTakenOnlyWhenNothingElseIsLeft) {
  const float last = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(Best({last, 0.1f, last}, 1), ElementsAre(1));
  EXPECT_THAT(Best({last, 0.1f, last}, 2), ElementsAre(0, 1));
  EXPECT_THAT(Best({last, last}, 1), ElementsAre(0));
}

TEST(SelectThresholdTest, CommitsExactlyTheBestWhenNoneReachesTheThreshold) {
  EXPECT_THAT(Threshold({0.2f, 0.6f, 0.6f}, 0.9f), ElementsAre(1));
}

TEST(SelectThresholdTest, CommitsAllAtZero) { EXPECT_THAT(Threshold({0.2f, 0.0f, 0.6f}, 0.0f), ElementsAre(0, 1, 2)); }

TEST(SelectThresholdTest, CommitsEveryRowThatReachesTheThreshold) {
  EXPECT_THAT(Threshold({0.9f, 0.89f, 0.95f}, 0.9f), ElementsAre(0, 2));
}

TEST(SelectDynamicTest, CommitsAllAboveTheThresholdWhenTheyAreEnough) {
  EXPECT_THAT(Dynamic({0.95f, 0.2f, 0.91f, 0.99f}, 0.9f, 2), ElementsAre(0, 2, 3));
}

TEST(SelectDynamicTest, FallsBackToTheScheduleWhenTheyAreTooFew) {
  EXPECT_THAT(Dynamic({0.95f, 0.2f, 0.5f, 0.1f}, 0.9f, 2), ElementsAre(0, 2));
  EXPECT_THAT(Dynamic({0.3f, 0.2f}, 0.9f, 0), ElementsAre(0)) << "a step always makes progress";
}

TEST(SelectDynamicTest, AThresholdOfOneIsNeverExceeded) {
  EXPECT_THAT(Dynamic({1.0f, 1.0f, 1.0f}, 1.0f, 1), ElementsAre(0));
}

TEST(SelectFirstTest, GoesLeftToRight) {
  EXPECT_THAT(First(5, 2), ElementsAre(0, 1));
  EXPECT_THAT(First(1, 2), ElementsAre(0));
}

std::vector<int> Factor(const std::vector<float>& rank, float factor) {
  BlockRule rule;
  rule.policy = Policy::kFactor;
  rule.factor = factor;
  return Chosen(rule, rank);
}

// decoding.md §21.7. dInfer's code would take the third, too, because it is the last.
TEST(SelectFactorTest, StopsAtTheFirstRowBelowItsBound) {
  EXPECT_THAT(Factor({0.99f, 0.98f, 0.6f}, 1.0f), ElementsAre(0, 1));
  EXPECT_THAT(Factor({0.6f, 0.99f, 0.98f}, 1.0f), ElementsAre(1, 2)) << "positions do not matter";
}

TEST(SelectFactorTest, TheBestIsTakenWhateverItsConfidence) {
  EXPECT_THAT(Factor({0.01f, 0.02f, 0.01f}, 1.0f), ElementsAre(1));
  EXPECT_THAT(Factor({0.9f, 0.99f}, 0.0f), ElementsAre(1)) << "a factor of 0 asks the others for certainty";
}

TEST(SelectFactorTest, RowsThatTieCountInTheOrderOfTheirPositions) {
  // Bounds of the second and third: 2/3 and 3/4.
  EXPECT_THAT(Factor({0.7f, 0.7f, 0.7f}, 1.0f), ElementsAre(0, 1));
}

std::vector<int> ByEntropy(Policy policy, const std::vector<float>& entropy, float bound) {
  BlockRule rule;
  rule.policy = policy;
  rule.entropy_bound = bound;
  std::vector<float> rank;
  for (const float h : entropy) rank.push_back(-h);
  return Chosen(rule, rank);
}

// decoding.md §21.7, which the accept rule of DiffusionGemma shares.
TEST(SelectByEntropyTest, EbSamplerLeavesOutTheLargestOfTheSum) {
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {0.0f, 0.02f, 0.05f, 0.3f}, 0.1f), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {0.0f, 0.02f, 0.05f, 0.3f}, 0.05f), ElementsAre(0, 1, 2));
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {0.3f, 0.05f, 0.0f, 0.02f}, 0.05f), ElementsAre(1, 2, 3));
}

// decoding.md §21.7: sums 0, 0.02, 0.07, 0.37.
TEST(SelectByEntropyTest, SdarCountsEveryEntropyOfTheSum) {
  EXPECT_THAT(ByEntropy(Policy::kEntropySum, {0.0f, 0.02f, 0.05f, 0.3f}, 0.35f), ElementsAre(0, 1, 2));
  EXPECT_THAT(ByEntropy(Policy::kEntropySum, {0.25f, 0.25f}, 0.5f), ElementsAre(0)) << "the bound is not reached";
}

TEST(SelectByEntropyTest, ABoundOfZeroTakesTheBestAndCertainRows) {
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {0.5f, 0.0f, 0.2f, 0.0f}, 0.0f), ElementsAre(1, 2, 3));
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {0.5f, 0.4f, 0.2f}, 0.0f), ElementsAre(2));
  EXPECT_THAT(ByEntropy(Policy::kEntropySum, {0.5f, 0.4f, 0.2f}, 0.0f), ElementsAre(2));
}

TEST(SelectByEntropyTest, ARowRankedLastEndsThePrefix) {
  const float last = std::numeric_limits<float>::infinity();
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {last, 0.1f, last}, 1000.0f), ElementsAre(0, 1));
  EXPECT_THAT(ByEntropy(Policy::kEntropySum, {last, 0.1f, last}, 1000.0f), ElementsAre(1));
  EXPECT_THAT(ByEntropy(Policy::kEntropyBound, {last, last}, 1000.0f), ElementsAre(0));
}

std::vector<int> Hierarchically(const std::vector<float>& rank, const std::vector<int32_t>& offset, float threshold,
                                float low_threshold) {
  BlockRule rule;
  rule.policy = Policy::kHierarchical;
  rule.threshold = threshold;
  rule.low_threshold = low_threshold;
  return Chosen(rule, rank, offset, 1);
}

// decoding.md §21.7
TEST(SelectHierarchicallyTest, TakesTheBestOfEachRunOfMasks) {
  const std::vector<float> rank = {0.5f, 0.6f, 0.3f, 0.2f, 0.45f, 0.35f};
  EXPECT_THAT(Hierarchically(rank, {0, 1, 2, 3, 6, 7}, 0.9f, 0.4f), ElementsAre(1, 4));
  EXPECT_THAT(Hierarchically(rank, {0, 1, 2, 3, 4, 5}, 0.9f, 0.4f), ElementsAre(1)) << "one run";
  EXPECT_THAT(Hierarchically(rank, {0, 2, 4, 6, 8, 10}, 0.9f, 0.4f), ElementsAre(0, 1, 4)) << "six runs";
}

TEST(SelectHierarchicallyTest, ARunBelowTheLowThresholdWaitsUnlessItHasTheBestOfAll) {
  EXPECT_THAT(Hierarchically({0.3f, 0.35f, 0.39f, 0.1f}, {0, 1, 6, 7}, 0.9f, 0.4f), ElementsAre(2));
}

TEST(SelectHierarchicallyTest, TakesEveryRowAboveTheThreshold) {
  EXPECT_THAT(Hierarchically({0.91f, 0.95f, 0.2f, 0.9f}, {0, 1, 2, 3}, 0.9f, 0.4f), ElementsAre(0, 1));
}

TEST(SelectHierarchicallyTest, OfRowsThatTieInARunTheLowestPositionIsTaken) {
  EXPECT_THAT(Hierarchically({0.5f, 0.5f, 0.5f, 0.5f}, {0, 1, 5, 6}, 0.9f, 0.4f), ElementsAre(0, 2));
}

constexpr Policy kScheduled[] = {Policy::kStatic, Policy::kDynamic, Policy::kSequential};
constexpr Policy kUnscheduled[] = {Policy::kThreshold, Policy::kFactor, Policy::kEntropyBound, Policy::kEntropySum,
                                   Policy::kHierarchical};

BlockRule Rule(Policy policy, int32_t commits_min) {
  BlockRule rule;
  rule.policy = policy;
  rule.masks = 8;
  rule.steps = 4;
  rule.commits_min = commits_min;
  return rule;
}

TEST(ScheduledNowTest, IsTheScheduleOrAtLeastOneWithoutAPace) {
  for (const Policy policy : kScheduled) {
    EXPECT_EQ(ScheduledNow(Rule(policy, 0), 0), 2);
    EXPECT_EQ(ScheduledNow(Rule(policy, 0), 4), 1) << "past the schedule";
  }
  for (const Policy policy : kUnscheduled) EXPECT_EQ(ScheduledNow(Rule(policy, 0), 0), 1) << "has no schedule";
}

TEST(ScheduledNowTest, APaceRaisesItAndNeverLowersIt) {
  for (const Policy policy : kScheduled) EXPECT_EQ(ScheduledNow(Rule(policy, 5), 0), 5);
  for (const Policy policy : kUnscheduled) EXPECT_EQ(ScheduledNow(Rule(policy, 5), 0), 5);
  EXPECT_EQ(ScheduledNow(Rule(Policy::kStatic, 1), 0), 2);
}

TEST(ScheduledNowTest, EveryPolicyCommitsAtLeastThePaceAndAllRowsWhenThereAreFewer) {
  const std::vector<float> rank = {0.1f, 0.95f, 0.3f, 0.2f, 0.4f, 0.05f};
  for (const Policy policy : kScheduled) {
    EXPECT_EQ(Chosen(policy, rank, 0.9f, ScheduledNow(Rule(policy, 4), 0)).size(), 4u);
    EXPECT_EQ(Chosen(policy, rank, 0.9f, ScheduledNow(Rule(policy, 40), 0)).size(), 6u);
  }
  for (const Policy policy : kUnscheduled) {
    EXPECT_EQ(Chosen(policy, rank, 0.9f, ScheduledNow(Rule(policy, 40), 0)).size(), 6u);
  }
  EXPECT_EQ(Chosen(Policy::kStatic, rank, 0.0f, 3).size(), 3u);
  EXPECT_EQ(Chosen(Policy::kDynamic, rank, 0.0f, 3).size(), 6u) << "a pace takes nothing away";
  EXPECT_EQ(Chosen(Policy::kThreshold, rank, 0.0f, 3).size(), 6u);
}

TEST(ScheduledNowTest, APaceAddsTheBestRows) {
  const std::vector<float> rank = {-0.9f, -0.1f, -0.7f, -0.8f, -0.6f, -0.95f};
  for (const Policy policy : kUnscheduled) {
    BlockRule rule = Rule(policy, 3);
    rule.threshold = rule.low_threshold = 0.9f;
    EXPECT_THAT(Chosen(rule, rank, ScheduledNow(rule, 0)), ElementsAre(1, 2, 4));
  }
}

TEST(SelectionTest, EveryPolicySelectsARowOfWhateverRanks) {
  const float last = -std::numeric_limits<float>::infinity();
  for (const std::vector<float>& rank : {std::vector<float>{last}, {last, last}, {0.0f, 0.0f}, {-3.0f, last}}) {
    for (int32_t policy = 0; policy < static_cast<int32_t>(Policy::kHost); ++policy) {
      EXPECT_FALSE(Chosen(Rule(static_cast<Policy>(policy), 0), rank).empty()) << policy;
    }
  }
}

TEST(SelectionTest, OfABlockThatTheHostDecidesNothingIsSelected) {
  EXPECT_TRUE(Chosen(Rule(Policy::kHost, 4), {0.9f, 1.0f}, 4).empty());
}

}  // namespace
}  // namespace quicksilver
