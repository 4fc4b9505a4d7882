#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/routing_case.h"

namespace quicksilver {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using Score = RoutingRule::Score;

using RoutingTest = OpsTest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

auto Near(std::vector<float> values) {
  std::vector<::testing::Matcher<float>> matchers;
  for (const float value : values) matchers.push_back(FloatNear(value, 1e-6f));
  return ::testing::ElementsAreArray(matchers);
}

/// Logits whose sigmoids are `scores`.
HostMatrix LogitsOf(const std::vector<float>& scores) {
  HostMatrix logits(1, static_cast<int64_t>(scores.size()));
  for (size_t e = 0; e < scores.size(); ++e) logits.values[e] = std::log(scores[e] / (1.0f - scores[e]));
  return logits;
}

TEST_P(RoutingTest, SoftmaxTakesTheMostLikelyExpertsWithTheirProbabilities) {
  const HostMatrix logits(1, 4, {std::log(1.0f), std::log(2.0f), std::log(4.0f), std::log(3.0f)});
  const Routed routed = RunRoute(*this, logits, {.experts = 4, .chosen = 3});
  EXPECT_THAT(routed.experts, ElementsAre(2, 3, 1));
  EXPECT_THAT(routed.weights, Near({0.4f, 0.3f, 0.2f}));
}

TEST_P(RoutingTest, NormalisedWeightsSumToTheScale) {
  const HostMatrix logits(1, 4, {std::log(1.0f), std::log(2.0f), std::log(4.0f), std::log(3.0f)});
  const Routed routed = RunRoute(*this, logits, {.experts = 4, .chosen = 2, .normalise = true, .scale = 2.1f});
  EXPECT_THAT(routed.weights, Near({1.2f, 0.9f}));
}

TEST_P(RoutingTest, TheBiasOfASigmoidRouterChoosesAndDoesNotWeigh) {
  const std::vector<float> bias = {0.0f, 0.0f, 0.5f, 0.0f};
  const Routed routed = RunRoute(
      *this, LogitsOf({0.6f, 0.8f, 0.4f, 0.2f}),
      {.score = Score::kSigmoid, .experts = 4, .chosen = 2, .bias = bias.data(), .normalise = true, .scale = 2.5f});
  EXPECT_THAT(routed.experts, ElementsAre(2, 1));
  EXPECT_THAT(routed.weights, Near({2.5f * 0.4f / 1.2f, 2.5f * 0.8f / 1.2f}));
}

TEST_P(RoutingTest, BiasedWeightsAreTheBiasedScores) {
  const std::vector<float> bias = {0.35f, 0.0f, 0.0f, -0.15f};
  const HostMatrix logits(1, 4, {std::log(1.0f), std::log(2.0f), std::log(4.0f), std::log(3.0f)});
  const Routed routed = RunRoute(*this, logits, {.experts = 4, .chosen = 3, .bias = bias.data(), .weigh_biased = true});
  EXPECT_THAT(routed.experts, ElementsAre(0, 2, 1));
  EXPECT_THAT(routed.weights, Near({0.45f, 0.4f, 0.2f}));
}

TEST_P(RoutingTest, EachExpertsScaleIsAppliedAfterNormalising) {
  const std::vector<float> scale = {9.0f, 9.0f, 0.5f, 3.0f};
  const HostMatrix logits(1, 4, {std::log(1.0f), std::log(2.0f), std::log(4.0f), std::log(4.0f)});
  const Routed routed =
      RunRoute(*this, logits, {.experts = 4, .chosen = 2, .normalise = true, .expert_scale = scale.data()});
  EXPECT_THAT(routed.weights, Near({0.25f, 1.5f}));
}

TEST_P(RoutingTest, WeightsAreRoundedToTheActivationTypeWhereTheRuleSaysSo) {
  const HostMatrix logits(1, 3, {0.0f, 0.0f, 0.0f});
  const Routed routed = RunRoute(*this, logits, {.experts = 3, .chosen = 1, .round_weights = true});
  EXPECT_THAT(routed.weights, ElementsAre(dtype() == DType::kF32 ? 1.0f / 3.0f : 0.333984375f));
}

TEST_P(RoutingTest, TiesGoToTheLowerExpert) {
  for (const int32_t experts : {5, 64, 257}) {
    const Routed routed = RunRoute(*this, HostMatrix(2, experts), {.experts = experts, .chosen = 4});
    EXPECT_THAT(routed.experts, ElementsAre(0, 1, 2, 3, 0, 1, 2, 3));
  }
  HostMatrix logits(1, 70);
  logits.at(0, 5) = logits.at(0, 40) = logits.at(0, 69) = 1.0f;
  EXPECT_THAT(RunRoute(*this, logits, {.experts = 70, .chosen = 4}).experts, ElementsAre(5, 40, 69, 0));
}

TEST_P(RoutingTest, TheBestExpertOfALosingGroupIsNotChosen) {
  // The best of all stands alone in group 1, whose sum of two, 0.91, is less than those of groups 0 and 2.
  const HostMatrix logits = LogitsOf({0.5f, 0.6f, 0.9f, 0.01f, 0.55f, 0.45f});
  const RoutingRule rule = {.score = Score::kSigmoid, .experts = 6, .chosen = 3, .groups = 3, .groups_kept = 2};
  const Routed routed = RunRoute(*this, logits, rule);
  EXPECT_THAT(routed.experts, ElementsAre(1, 4, 0));
  EXPECT_THAT(routed.weights, Near({0.6f, 0.55f, 0.5f}));
  RoutingRule ungrouped = rule;
  ungrouped.groups = 0;
  EXPECT_THAT(RunRoute(*this, logits, ungrouped).experts, ElementsAre(2, 1, 4));
}

TEST_P(RoutingTest, GroupsAreJudgedByTheirBiasedScoresAndTiesGoToTheLower) {
  const RoutingRule rule = {.score = Score::kSigmoid, .experts = 6, .chosen = 2, .groups = 3, .groups_kept = 1};
  EXPECT_THAT(RunRoute(*this, HostMatrix(1, 6), rule).experts, ElementsAre(0, 1));
  const std::vector<float> bias = {0.0f, 0.0f, 0.0f, 0.0f, 0.1f, -0.05f};
  RoutingRule biased = rule;
  biased.bias = bias.data();
  EXPECT_THAT(RunRoute(*this, HostMatrix(1, 6), biased).experts, ElementsAre(4, 5));
}

/// Row n prefers the experts of `best`, in that order, and the others not at all.
HostMatrix Preferring(int64_t experts, const std::vector<std::vector<int32_t>>& best) {
  HostMatrix logits(static_cast<int64_t>(best.size()), experts);
  for (float& value : logits.values) value = -4.0f;
  for (size_t n = 0; n < best.size(); ++n) {
    for (size_t i = 0; i < best[n].size(); ++i) {
      logits.at(static_cast<int64_t>(n), best[n][i]) = 2.0f - 0.5f * static_cast<float>(i);
    }
  }
  return logits;
}

TEST_P(RoutingTest, APoolAdmitsTheBestExpertsOfABlockForAllItsRows) {
  const RoutingRule rule = {.score = Score::kSigmoid, .experts = 8, .chosen = 2, .pool_block = 4, .pool_experts = 3};
  // Of the block the best scores are those of 6, 1 and 4 (2.0 each); row 0 must do without its second choice, 3.
  const HostMatrix logits = Preferring(8, {{6, 3}, {1, 6}, {4, 1}, {6, 4}});
  EXPECT_THAT(RunRoute(*this, logits, rule).experts, ElementsAre(6, 1, 1, 6, 4, 1, 6, 4));
}

TEST_P(RoutingTest, PoolsFollowTheAbsoluteBlocksOfEachSegment) {
  const RoutingRule rule = {.score = Score::kSigmoid, .experts = 8, .chosen = 1, .pool_block = 4, .pool_experts = 1};
  // Rows 0..2 at positions 6, 7, 8: two blocks. Rows 3, 4 at positions 5, 6 of another sequence: a third.
  std::vector<AttentionSegment> segments;
  AppendSegment(segments, 3, 6);
  AppendSegment(segments, 2, 5);
  AppendSegment(segments, 0, 0);
  const HostMatrix logits = Preferring(8, {{5}, {3}, {1}, {6}, {2}});
  EXPECT_THAT(RunRoute(*this, logits, rule, segments).experts, ElementsAre(3, 3, 1, 2, 2));
}

TEST_P(RoutingTest, RowsOfNoSegmentGetNoExperts) {
  std::vector<AttentionSegment> segments;
  AppendSegment(segments, 2, 0);
  AppendSegment(segments, 0, 0);
  const Routed routed = RunRoute(*this, RandomMatrix(4, 16, 1), {.experts = 16, .chosen = 2}, segments);
  EXPECT_THAT(std::vector<int32_t>(routed.experts.begin() + 4, routed.experts.end()), Each(-1));
  EXPECT_THAT(std::vector<float>(routed.weights.begin() + 4, routed.weights.end()), Each(0.0f));
  EXPECT_THAT(std::vector<int32_t>(routed.experts.begin(), routed.experts.begin() + 4), Each(::testing::Ge(0)));
}

TEST_P(RoutingTest, ANanIsNeverPreferredAndSpoilsNoOtherRow) {
  HostMatrix logits = RandomMatrix(3, 64, 1);
  const RoutingRule rule = {
      .score = Score::kSigmoid, .experts = 64, .chosen = 4, .groups = 8, .groups_kept = 4, .normalise = true};
  const Routed sound = RunRoute(*this, logits, rule);
  RoutingRule ungrouped = rule;
  ungrouped.groups = 0;
  for (const int32_t spoiled : {0, 9, 63}) {
    for (const float nan : {kNan, -kNan}) {
      HostMatrix some = logits;
      some.at(1, spoiled) = nan;
      for (const RoutingRule& each : {rule, ungrouped}) {
        const std::vector<int32_t> experts = RunRoute(*this, some, each).experts;
        EXPECT_THAT(std::vector<int32_t>(experts.begin() + 4, experts.begin() + 8), Each(::testing::Ne(spoiled)));
      }
    }
  }
  for (int64_t e = 0; e < 64; ++e) logits.at(1, e) = kNan;
  const Routed spoiled = RunRoute(*this, logits, rule);
  for (size_t i = 0; i < spoiled.experts.size(); ++i) {
    if (i / 4 == 1) {
      EXPECT_EQ(spoiled.experts[i], static_cast<int32_t>(i % 4));
    } else {
      EXPECT_EQ(spoiled.experts[i], sound.experts[i]);
      EXPECT_EQ(BitsOfFloat(spoiled.weights[i]), BitsOfFloat(sound.weights[i]));
    }
  }
}

/// The `count` best of `scores` among `admitted`, from the definition.
std::vector<int32_t> Best(const std::vector<double>& scores, const std::vector<bool>& admitted, int32_t count) {
  std::vector<int32_t> order;
  for (size_t e = 0; e < scores.size(); ++e) {
    if (admitted[e]) order.push_back(static_cast<int32_t>(e));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

struct Scores {
  std::vector<double> plain, biased;
};

Scores ScoresOf(const HostMatrix& logits, int64_t n, const RoutingRule& rule) {
  Scores scores;
  double sum = 0.0;
  for (int32_t e = 0; e < rule.experts; ++e) sum += std::exp(double{logits.at(n, e)});
  for (int32_t e = 0; e < rule.experts; ++e) {
    const double power = std::exp(double{logits.at(n, e)});
    scores.plain.push_back(rule.score == Score::kSoftmax ? power / sum : power / (1.0 + power));
    scores.biased.push_back(scores.plain.back() + (rule.bias == nullptr ? 0.0 : double{rule.bias[e]}));
  }
  return scores;
}

/// One segment from position 0.
void ExpectRouted(const HostMatrix& logits, const RoutingRule& rule, const Routed& routed) {
  for (int64_t n = 0; n < logits.rows; ++n) {
    const Scores scores = ScoresOf(logits, n, rule);
    std::vector<bool> admitted(static_cast<size_t>(rule.experts), rule.groups == 0 && rule.pool_block == 0);
    if (rule.groups > 0) {
      const int32_t size = rule.experts / rule.groups;
      std::vector<double> sums;
      for (int32_t g = 0; g < rule.groups; ++g) {
        std::vector<double> group(scores.biased.begin() + g * size, scores.biased.begin() + (g + 1) * size);
        std::sort(group.rbegin(), group.rend());
        sums.push_back(group[0] + group[1]);
      }
      const std::vector<bool> all(sums.size(), true);
      for (const int32_t g : Best(sums, all, rule.groups_kept)) {
        std::fill_n(admitted.begin() + g * size, size, true);
      }
    }
    if (rule.pool_block > 0) {
      std::vector<double> largest(static_cast<size_t>(rule.experts), -1e9);
      const int64_t first = n / rule.pool_block * rule.pool_block;
      for (int64_t m = first; m < std::min(logits.rows, first + rule.pool_block); ++m) {
        const Scores other = ScoresOf(logits, m, rule);
        for (size_t e = 0; e < largest.size(); ++e) largest[e] = std::max(largest[e], other.biased[e]);
      }
      const std::vector<bool> all(largest.size(), true);
      for (const int32_t e : Best(largest, all, rule.pool_experts)) admitted[e] = true;
    }
    double sum = 0.0;
    const std::vector<int32_t> best = Best(scores.biased, admitted, rule.chosen);
    for (const int32_t e : best) sum += scores.plain[e];
    for (int32_t j = 0; j < rule.chosen; ++j) {
      ASSERT_EQ(routed.experts[n * rule.chosen + j], best[j]) << "row " << n << ", choice " << j;
      const double weight = scores.plain[best[j]] * rule.scale / (rule.normalise ? sum : 1.0);
      ASSERT_NEAR(routed.weights[n * rule.chosen + j], weight, 2e-6 * rule.scale) << "row " << n << ", choice " << j;
    }
  }
}

TEST_P(RoutingTest, AgreesWithTheDefinition) {
  std::mt19937 generator(3);
  const std::vector<float> bias = RandomMatrix(1, kExpertsMax, 4, 0.1f).values;
  const RoutingRule rules[] = {
      {.experts = 1, .chosen = 1},
      {.experts = 7, .chosen = 7, .normalise = true},
      {.experts = 64, .chosen = 8, .bias = bias.data()},
      {.experts = 128, .chosen = 8, .normalise = true},
      {.score = Score::kSigmoid, .experts = 6, .chosen = 2, .groups = 3, .groups_kept = 2, .normalise = true},
      {.score = Score::kSigmoid,
       .experts = 256,
       .chosen = 8,
       .groups = 8,
       .groups_kept = 4,
       .bias = bias.data(),
       .normalise = true,
       .scale = 2.5f},
      {.score = Score::kSigmoid,
       .experts = 256,
       .chosen = 8,
       .pool_block = 32,
       .pool_experts = 48,
       .bias = bias.data(),
       .normalise = true,
       .scale = 2.5f},
      {.score = Score::kSigmoid, .experts = 40, .chosen = 3, .pool_block = 4, .pool_experts = 5},
      {.experts = kExpertsMax, .chosen = kChosenExpertsMax, .groups = 512, .groups_kept = 100},
  };
  for (const RoutingRule& rule : rules) {
    for (const int64_t rows : {0, 1, 41}) {
      SCOPED_TRACE(absl::StrCat(rows, " rows, ", rule.chosen, " of ", rule.experts));
      const HostMatrix logits = RandomMatrix(rows, rule.experts, generator());
      ExpectRouted(logits, rule, RunRoute(*this, logits, rule));
    }
  }
}

TEST_P(RoutingTest, LogitsMayBeOfTheActivationType) {
  const RoutingRule rule = {.experts = 64, .chosen = 8};
  const HostMatrix logits = RandomMatrix(9, 64, 1);
  ExpectRouted(Rounded(logits, dtype()), rule, RunRoute(*this, logits, rule, {}, dtype()));
}

TEST_P(RoutingTest, TheBitsOfARowDependOnItsBlockAlone) {
  const std::vector<float> bias = RandomMatrix(1, 64, 4, 0.1f).values;
  for (const int32_t pool : {0, 4}) {
    const RoutingRule rule = {.score = Score::kSigmoid,
                              .experts = 64,
                              .chosen = 6,
                              .pool_block = pool,
                              .pool_experts = 12,
                              .bias = bias.data(),
                              .normalise = true};
    const HostMatrix logits = RandomMatrix(24, 64, 2);
    const Routed together = RunRoute(*this, logits, rule);
    for (int32_t first = 0; first < 24; first += 4) {
      std::vector<AttentionSegment> segments;
      AppendSegment(segments, 4, first);
      std::vector<int32_t> rows(4);
      std::iota(rows.begin(), rows.end(), first);
      const Routed alone = RunRoute(*this, SelectRows(logits, rows), rule, segments);
      for (size_t i = 0; i < alone.experts.size(); ++i) {
        ASSERT_EQ(alone.experts[i], together.experts[first * 6 + i]);
        ASSERT_EQ(BitsOfFloat(alone.weights[i]), BitsOfFloat(together.weights[first * 6 + i]));
      }
    }
  }
}

INSTANTIATE_OPS_TEST(RoutingTest);

}  // namespace
}  // namespace quicksilver
