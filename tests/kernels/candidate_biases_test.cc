#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/policy/merge_candidates.h"
#include "tests/kernels/candidates_case.h"

namespace quicksilver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// One row of logits that are whole eighths, so that they and their sums with biases are exact in bf16.
std::vector<float> Eighths(size_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(static_cast<int32_t>(generator() % 161) - 80) / 8.0f;
  return values;
}

/// Biases of every `step`-th id from `first` on; every fifth of them forbids.
std::vector<TokenBias> Biases(int32_t ids, int32_t first, int32_t step, uint32_t seed) {
  const std::vector<float> values = Eighths(static_cast<size_t>(ids), seed);
  std::vector<TokenBias> biases;
  for (int32_t id = first; id < ids; id += step) {
    biases.push_back({id, biases.size() % 5 == 4 ? -kInfinity : values[static_cast<size_t>(id)]});
  }
  return biases;
}

class CandidateBiasesTest : public OpsTest {
 protected:
  /// Candidates of one row of logits, of the ids [first_id, first_id + logits).
  CandidateResults OfRow(const std::vector<float>& logits, const VocabularyShard& shard,
                         const std::vector<CandidateRequest>& requests, const CandidateTables& tables,
                         int32_t top_count = 0) {
    const std::unique_ptr<GemmWeight> weight = Prepare({static_cast<int64_t>(logits.size()), 1, logits});
    return RunCandidates(*this, HostMatrix(1, 1, {1.0f}), *weight, shard, requests, top_count, tables);
  }

  /// What MergeCandidates() makes of `ranks` shards of the row. history: one a rank.
  RowChoice Merged(const std::vector<float>& logits, int32_t ranks, CandidateRequest request, const SamplingRule& rule,
                   const std::vector<TokenBias>& biases, std::vector<std::vector<float>>* history = nullptr,
                   int32_t mask_id = -1) {
    const int32_t ids = static_cast<int32_t>(logits.size()), share = ids / ranks;
    request.temperature = rule.temperature;
    std::vector<Candidate> candidates;
    std::vector<TopLogit> top;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      const auto begin = logits.begin() + rank * share;
      const VocabularyShard shard = {.first_id = rank * share, .vocabulary = ids, .mask_id = mask_id};
      const CandidateTables tables = {biases, history != nullptr ? &(*history)[static_cast<size_t>(rank)] : nullptr};
      const CandidateResults one = OfRow({begin, begin + share}, shard, {request}, tables, kTopLogitsMax);
      candidates.push_back(one.candidates[0]);
      top.insert(top.end(), one.top[0].begin(), one.top[0].end());
    }
    const GatheredRow row = {.candidates = candidates.data(),
                             .candidate_stride = 1,
                             .top = top.data(),
                             .top_stride = kTopLogitsMax,
                             .top_count = kTopLogitsMax,
                             .ranks = ranks};
    return MergeCandidates(row, rule, /*raw_confidence=*/false, request.place);
  }
};

TEST_P(CandidateBiasesTest, ABiasedRowIsTheRowWithItsBiasesAdded) {
  const int32_t ids = 3000, first_id = 700;
  const std::vector<float> logits = Eighths(ids, 1);
  // Another request's biases lie in front, and ids of other shards among its own.
  std::vector<TokenBias> biases = Biases(6000, 5, 17, 9);
  const auto first_bias = static_cast<int32_t>(biases.size());
  const std::vector<TokenBias> own = Biases(6000, 3, 17, 2);
  biases.insert(biases.end(), own.begin(), own.end());
  std::vector<float> sums = logits;
  for (const TokenBias& bias : own) {
    if (bias.id >= first_id && bias.id < first_id + ids) sums[static_cast<size_t>(bias.id - first_id)] += bias.bias;
  }
  const VocabularyShard shard = {.first_id = first_id, .vocabulary = first_id + 2990, .mask_id = 955};
  for (const float temperature : {0.0f, 0.6f, 1.5f}) {
    for (uint32_t position = 0; position < 8; ++position) {
      CandidateRequest request = {.temperature = temperature, .place = {.seed = 4, .position = position}};
      request.suppressed_id = position % 2 == 0 ? 1021 : -1;
      const CandidateResults expected = OfRow(sums, shard, {request}, {}, 40);
      request.first_bias = first_bias;
      request.bias_count = static_cast<int32_t>(own.size());
      const CandidateResults actual = OfRow(logits, shard, {request}, {biases}, 40);
      const Candidate &a = actual.candidates[0], &e = expected.candidates[0];
      EXPECT_EQ(a.best_id, e.best_id);
      EXPECT_EQ(a.best_logit, e.best_logit);
      EXPECT_EQ(a.second_logit, e.second_logit);
      EXPECT_EQ(a.sampled_id, e.sampled_id);
      EXPECT_EQ(a.sampled_logit, e.sampled_logit);
      EXPECT_EQ(a.sampled_score, e.sampled_score);
      EXPECT_NEAR(a.log_sum_exp, e.log_sum_exp, 1e-6);
      EXPECT_NEAR(a.mean_logit, e.mean_logit, 1e-5);
      EXPECT_NEAR(a.tempered_log_sum_exp, e.tempered_log_sum_exp, 1e-5);
      EXPECT_NEAR(a.tempered_mean_logit, e.tempered_mean_logit, 1e-5);
      for (size_t k = 0; k < 40; ++k) {
        EXPECT_EQ(actual.top[0][k].id, expected.top[0][k].id);
        EXPECT_EQ(actual.top[0][k].logit, expected.top[0][k].logit);
      }
    }
  }
}

TEST_P(CandidateBiasesTest, AForbiddenIdIsNeverChosenWhateverItsLogitIs) {
  const std::vector<TokenBias> biases = {{0, -kInfinity}, {2, 1.0f}};
  const CandidateRequest request = {.bias_count = 2};
  const CandidateResults forbidden = OfRow({3.0f, -kInfinity, -kInfinity}, {.vocabulary = 3}, {request}, {biases}, 3);
  EXPECT_EQ(forbidden.candidates[0].best_id, 1);
  EXPECT_EQ(forbidden.candidates[0].best_logit, -kInfinity);
  EXPECT_EQ(forbidden.candidates[0].log_sum_exp, -kInfinity);
  EXPECT_EQ(forbidden.top[0][0].id, 1);
  EXPECT_EQ(forbidden.top[0][1].id, 2);
  EXPECT_EQ(forbidden.top[0][2].id, -1);
  for (const float wild : {kNan, kInfinity}) {
    const Candidate c = OfRow({wild, 1.0f, 0.5f}, {.vocabulary = 3}, {request}, {biases}).candidates[0];
    EXPECT_EQ(c.finite, 1);
    EXPECT_EQ(c.best_id, 2);
    EXPECT_NEAR(c.log_sum_exp, std::log(std::exp(1.0) + std::exp(1.5)), 1e-6);
  }
  EXPECT_EQ(OfRow({1.0f, 1.0f, kNan}, {.vocabulary = 3}, {request}, {biases}).candidates[0].finite, 0);
}

TEST_P(CandidateBiasesTest, ARowOfForbiddenIdsHasNoBest) {
  const std::vector<TokenBias> biases = {{0, -kInfinity}, {1, -kInfinity}};
  for (const float temperature : {0.0f, 1.0f}) {
    const CandidateRequest request = {.temperature = temperature, .bias_count = 2};
    const CandidateResults results = OfRow({3.0f, 4.0f}, {.vocabulary = 2}, {request}, {biases}, 2);
    EXPECT_EQ(results.candidates[0].best_id, -1);
    EXPECT_EQ(results.candidates[0].sampled_id, -1);
    EXPECT_EQ(results.candidates[0].log_sum_exp, -kInfinity);
    EXPECT_EQ(results.top[0][0].id, -1);
  }
}

TEST_P(CandidateBiasesTest, TheCapComesBeforeGuidanceAndBias) {
  const std::vector<float> conditional = {100.0f, -50.0f, 20.0f, 0.125f}, unconditional = {-4.0f, 8.0f, 90.0f, 0.5f};
  HostMatrix weight(4, 2);
  for (int64_t id = 0; id < 4; ++id) weight.at(id, 0) = conditional[id], weight.at(id, 1) = unconditional[id];
  const CandidateRequest request = {.row = 0, .guide_row = 1, .guidance = 0.5f, .bias_count = 1};
  const CandidateResults results = RunCandidates(*this, HostMatrix(2, 2, {1, 0, 0, 1}), *Prepare(weight),
                                                 {.vocabulary = 4, .soft_cap = 30.0f}, {request}, 4, {{{3, 2.0f}}});
  for (const TopLogit& top : results.top[0]) {
    const auto capped = [](double z) { return 30.0 * std::tanh(z / 30.0); };
    const double u = capped(unconditional[static_cast<size_t>(top.id)]);
    const double z = u + 1.5 * (capped(conditional[static_cast<size_t>(top.id)]) - u) + (top.id == 3 ? 2.0 : 0.0);
    EXPECT_NEAR(top.logit, z, 2e-5) << "id " << top.id;
  }
}

TEST_P(CandidateBiasesTest, TheAskedLogitIsTheOneThatCounts) {
  const std::vector<float> logits = {1.0f, 2.0f, 3.0f, 4.0f};
  const VocabularyShard shard = {.first_id = 10, .vocabulary = 14, .mask_id = 12};
  const std::vector<TokenBias> biases = {{11, 0.5f}, {13, -kInfinity}};
  const auto asked = [&](int32_t id) {
    CandidateRequest request = {.suppressed_id = 10, .bias_count = 2};
    request.asked_id = id;
    return OfRow(logits, shard, {request}, {biases}).candidates[0].asked_logit;
  };
  EXPECT_EQ(asked(11), 2.5f);
  EXPECT_EQ(asked(12), 3.0f) << "the mask's, too";
  EXPECT_EQ(asked(10), -kInfinity) << "suppressed";
  EXPECT_EQ(asked(13), -kInfinity) << "forbidden";
  EXPECT_EQ(asked(9), -kInfinity) << "of another shard";
  EXPECT_EQ(asked(14), -kInfinity);
  EXPECT_EQ(asked(-1), -kInfinity);
}

/// sum p ln(p / q) of two rows of logits, in double.
double Divergence(const std::vector<float>& now, const std::vector<float>& before) {
  const auto log_sum = [](const std::vector<float>& z) {
    double sum = 0.0;
    for (const float value : z) sum += std::exp(double{value});
    return std::log(sum);
  };
  const double log_now = log_sum(now), log_before = log_sum(before);
  double divergence = 0.0;
  for (size_t i = 0; i < now.size(); ++i) {
    if (now[i] == -kInfinity) continue;
    divergence += std::exp(now[i] - log_now) * (now[i] - log_now - (before[i] - log_before));
  }
  return divergence;
}

// KLASS's numbers (decoding.md §9) from one pass over the logits of each step, whatever the shards.
TEST_P(CandidateBiasesTest, TheHistoryGivesTheDivergenceFromTheStepBefore) {
  const int32_t ids = 2400;
  std::vector<std::vector<float>> steps = {Eighths(ids, 1), Eighths(ids, 2), {}};
  const int32_t mask_id = 1100;  // Never chosen, but it has the most mass.
  steps[0][mask_id] = 12.0f;
  steps[1][mask_id] = 11.0f;
  steps[2] = steps[1];
  steps[2][7] += 0.25f;  // Hardly anything has changed: the divergence is tiny.
  for (const int32_t ranks : {1, 2, 4}) {
    for (const float temperature : {0.0f, 0.7f}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, T ", temperature));
      const auto share = static_cast<size_t>(ids / ranks);
      std::vector<std::vector<float>> history(static_cast<size_t>(ranks), std::vector<float>(3 * share, kNan));
      double log_sum_before = 0.0;
      for (size_t step = 0; step < steps.size(); ++step) {
        const CandidateRequest request = {.history_slot = 1, .history_valid = step > 0 ? 1 : 0};
        const RowChoice choice =
            Merged(steps[step], ranks, request, {.temperature = temperature}, {}, &history, mask_id);
        const double raw_mean = choice.mean_previous;
        if (step == 0) {
          EXPECT_EQ(raw_mean, 0.0);
        } else if (temperature == 0.0f) {
          const double actual = -double{choice.entropy} - raw_mean + log_sum_before;
          EXPECT_NEAR(actual, Divergence(steps[step], steps[step - 1]), 1e-5);
        }
        log_sum_before = choice.log_sum_exp;
        for (size_t i = 0; i < steps[step].size(); ++i) {
          ASSERT_EQ(history[i / share][share + i % share], steps[step][i]) << "id " << i;
          ASSERT_TRUE(std::isnan(history[i / share][i % share])) << "another slot";
        }
      }
    }
  }
}

TEST_P(CandidateBiasesTest, TheHistoryHoldsBiasedLogitsAndForbiddenIdsWeighNothing) {
  const std::vector<TokenBias> biases = {{1, 0.5f}, {2, -kInfinity}};
  std::vector<float> history = {kNan, kNan, kNan, kNan};
  CandidateRequest request = {.bias_count = 2, .history_slot = 0};
  OfRow({1.0f, 2.0f, 9.0f, 3.0f}, {.vocabulary = 4}, {request}, {biases, &history});
  EXPECT_EQ(history[0], 1.0f);
  EXPECT_EQ(history[1], 2.5f);
  EXPECT_EQ(history[2], -kInfinity);
  request.history_valid = 1;
  const Candidate c = OfRow({1.5f, 2.0f, 9.0f, 3.0f}, {.vocabulary = 4}, {request}, {biases, &history}).candidates[0];
  const double divergence =
      c.mean_logit - c.log_sum_exp - c.mean_previous + std::log(std::exp(1.0) + std::exp(2.5) + std::exp(3.0));
  EXPECT_NEAR(divergence, Divergence({1.5f, 2.5f, -kInfinity, 3.0f}, {1.0f, 2.5f, -kInfinity, 3.0f}), 1e-6);
}

TEST_P(CandidateBiasesTest, ShardsSayWhatOneRankSays) {
  const int32_t ids = 2048;
  const std::vector<float> logits = Eighths(ids, 5);
  const std::vector<TokenBias> biases = Biases(ids, 1, 9, 6);
  const SamplingRule rules[] = {{},
                                {.temperature = 0.8f},
                                {.top_k = 20, .truncate_greedy = true},
                                {.temperature = 1.2f, .top_p = 0.9f, .top_k = 50}};
  for (const SamplingRule& rule : rules) {
    for (uint32_t position = 0; position < 6; ++position) {
      const CandidateRequest request = {.place = {.seed = 8, .position = position},
                                        .bias_count = static_cast<int32_t>(biases.size()),
                                        .asked_id = static_cast<int32_t>(position * 333)};
      const RowChoice one = Merged(logits, 1, request, rule, biases);
      for (const int32_t ranks : {2, 4}) {
        const RowChoice many = Merged(logits, ranks, request, rule, biases);
        EXPECT_EQ(many.token, one.token);
        EXPECT_NEAR(many.confidence, one.confidence, 1e-6);
        EXPECT_NEAR(many.margin, one.margin, 1e-6);
        EXPECT_NEAR(many.entropy, one.entropy, 1e-5);
        EXPECT_NEAR(many.asked_probability, one.asked_probability, 1e-6);
        EXPECT_NEAR(many.log_sum_exp, one.log_sum_exp, 1e-6);
      }
    }
  }
}

TEST_P(CandidateBiasesTest, BiasedDrawsComeAsOftenAsTheSoftmaxSays) {
  const std::vector<float> logits = {1.0f, 0.5f, 3.0f, 2.0f, 0.0f, -2.0f, 1.5f, 0.25f};
  const std::vector<TokenBias> biases = {{0, 1.0f}, {2, -kInfinity}, {3, -1.5f}, {5, 2.5f}};
  std::vector<float> sums = logits;
  for (const TokenBias& bias : biases) sums[static_cast<size_t>(bias.id)] += bias.bias;
  const double temperature = 0.75;
  constexpr int32_t kDraws = 8000;
  std::vector<CandidateRequest> requests;
  for (uint32_t draw = 0; draw < kDraws; ++draw) {
    requests.push_back({.temperature = static_cast<float>(temperature),
                        .place = {.seed = 42, .position = draw / 16, .step = draw % 16},
                        .bias_count = static_cast<int32_t>(biases.size())});
  }
  std::vector<int> counts(8);
  for (const Candidate& c : OfRow(logits, {.vocabulary = 8}, requests, {biases}).candidates) ++counts[c.sampled_id];
  EXPECT_EQ(counts[2], 0);
  double sum = 0.0, chi_square = 0.0;
  for (const float z : sums) sum += std::exp(z / temperature);
  for (size_t id = 0; id < 8; ++id) {
    if (id == 2) continue;
    const double expected = kDraws * std::exp(sums[id] / temperature) / sum;
    chi_square += (counts[id] - expected) * (counts[id] - expected) / expected;
  }
  EXPECT_LT(chi_square, 22.5);  // 6 degrees of freedom: exceeded once in a thousand seeds, and this seed is fixed.
}

INSTANTIATE_OPS_TEST(CandidateBiasesTest);

}  // namespace
}  // namespace quicksilver
