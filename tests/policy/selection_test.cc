#include "kernels/policy/selection.h"

#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/policy/open_block.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

/// The rows that a rule selects.
std::vector<int> Chosen(Policy policy, const std::vector<float>& rank, float threshold, int32_t count) {
  int32_t above = 0;
  for (const float r : rank) above += r > threshold ? 1 : 0;
  std::vector<int> rows;
  for (int32_t i = 0; i < static_cast<int32_t>(rank.size()); ++i) {
    if (IsSelected(policy, rank.data(), static_cast<int32_t>(rank.size()), i, threshold, count, above)) {
      rows.push_back(i);
    }
  }
  return rows;
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

BlockRule Rule(Policy policy, int32_t commits_min) {
  BlockRule rule;
  rule.policy = policy;
  rule.masks = 8;
  rule.steps = 4;
  rule.commits_min = commits_min;
  return rule;
}

TEST(ScheduledNowTest, IsTheScheduleOrAtLeastOneWithoutAPace) {
  for (const Policy policy : {Policy::kStatic, Policy::kDynamic, Policy::kSequential}) {
    EXPECT_EQ(ScheduledNow(Rule(policy, 0), 0), 2);
    EXPECT_EQ(ScheduledNow(Rule(policy, 0), 4), 1) << "past the schedule";
  }
  EXPECT_EQ(ScheduledNow(Rule(Policy::kThreshold, 0), 0), 1) << "has no schedule";
}

TEST(ScheduledNowTest, APaceRaisesItAndNeverLowersIt) {
  for (const Policy policy : {Policy::kStatic, Policy::kDynamic, Policy::kSequential, Policy::kThreshold}) {
    EXPECT_EQ(ScheduledNow(Rule(policy, 5), 0), 5);
  }
  EXPECT_EQ(ScheduledNow(Rule(Policy::kStatic, 1), 0), 2);
}

TEST(ScheduledNowTest, EveryPolicyCommitsAtLeastThePaceAndAllRowsWhenThereAreFewer) {
  const std::vector<float> rank = {0.1f, 0.95f, 0.3f, 0.2f, 0.4f, 0.05f};
  for (const Policy policy : {Policy::kStatic, Policy::kDynamic, Policy::kSequential, Policy::kThreshold}) {
    EXPECT_EQ(Chosen(policy, rank, 0.9f, ScheduledNow(Rule(policy, 4), 0)).size(), 4u);
    EXPECT_EQ(Chosen(policy, rank, 0.9f, ScheduledNow(Rule(policy, 40), 0)).size(), 6u);
    EXPECT_EQ(Chosen(policy, rank, 0.0f, ScheduledNow(Rule(Policy::kThreshold, 3), 0)).size(),
              policy == Policy::kThreshold || policy == Policy::kDynamic ? 6u : 3u)
        << "a pace takes nothing away";
  }
  EXPECT_THAT(Chosen(Policy::kThreshold, rank, 0.9f, 3), ElementsAre(1, 2, 4)) << "the best ones";
}

}  // namespace
}  // namespace quicksilver
