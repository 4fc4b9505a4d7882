#include "kernels/policy/merge_candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The records that `ranks` shards of equal size make of one row of logits, written from the formulas of candidate.h.
struct Records {
  std::vector<Candidate> candidates;
  std::vector<TopLogit> top;
  int32_t ranks = 0;

  GatheredRow Row() const {
    return {candidates.data(), 1, top.data(), kTopLogitsMax, top.empty() ? 0 : kTopLogitsMax, ranks};
  }
};

Candidate ShardCandidate(const std::vector<float>& logits, size_t first, size_t end, const CandidateRequest& request,
                         int32_t mask_id) {
  Candidate out;
  out.best_logit = out.second_logit = out.sampled_logit = -kInfinity;
  out.sampled_score = -kInfinity;
  double sum = 0, tempered = 0, mean = 0;
  const double t = request.temperature > 0 ? request.temperature : 1.0;
  for (size_t id = first; id < end; ++id) {
    if (std::isnan(logits[id])) out.finite = 0;
    sum += std::exp(static_cast<double>(logits[id]));
    tempered += std::exp(logits[id] / t);
    mean += logits[id] * std::exp(static_cast<double>(logits[id]));
    if (static_cast<int32_t>(id) == mask_id || logits[id] == -kInfinity) continue;
    if (out.best_id < 0 || logits[id] > out.best_logit) {
      out.second_logit = out.best_logit;
      out.best_logit = logits[id];
      out.best_id = static_cast<int32_t>(id);
    } else {
      out.second_logit = std::max(out.second_logit, logits[id]);
    }
    const double score = logits[id] / t + (request.temperature > 0 ? GumbelDraw(request.place, id) : 0.0);
    if (out.sampled_id < 0 || score > out.sampled_score) {
      out.sampled_score = score;
      out.sampled_id = static_cast<int32_t>(id);
      out.sampled_logit = logits[id];
    }
  }
  out.log_sum_exp = std::log(sum);
  out.tempered_log_sum_exp = std::log(tempered);
  out.mean_logit = sum > 0 ? static_cast<float>(mean / sum) : 0.0f;
  return out;
}

Records MakeRecords(const std::vector<float>& logits, int32_t ranks, const CandidateRequest& request,
                    int32_t mask_id = -1) {
  Records records;
  records.ranks = ranks;
  const size_t shard = (logits.size() + ranks - 1) / ranks;
  for (size_t r = 0; r < static_cast<size_t>(ranks); ++r) {
    const size_t first = std::min(logits.size(), r * shard), end = std::min(logits.size(), first + shard);
    records.candidates.push_back(ShardCandidate(logits, first, end, request, mask_id));
    std::vector<TopLogit> top;
    for (size_t id = first; id < end; ++id) {
      if (static_cast<int32_t>(id) != mask_id) top.push_back({logits[id], static_cast<int32_t>(id)});
    }
    std::stable_sort(top.begin(), top.end(), [](const TopLogit& a, const TopLogit& b) { return a.logit > b.logit; });
    top.resize(kTopLogitsMax, {-kInfinity, -1});
    records.top.insert(records.top.end(), top.begin(), top.end());
  }
  return records;
}

RowChoice Choose(const std::vector<float>& logits, int32_t ranks, const SamplingRule& rule, bool raw = false,
                 uint32_t position = 0, int32_t mask_id = -1) {
  CandidateRequest request;
  request.temperature = rule.temperature;
  request.place = {rule.seed, rule.choice, position, 0};
  const Records records = MakeRecords(logits, ranks, request, mask_id);
  return MergeCandidates(records.Row(), rule, raw, request.place);
}

std::vector<float> RandomLogits(size_t count, uint64_t seed) {
  std::vector<float> logits(count);
  for (size_t i = 0; i < count; ++i) {
    logits[i] = static_cast<float>(GumbelDraw({seed, 0, 0, 0}, static_cast<uint32_t>(i)) * 2.0);
  }
  return logits;
}

TEST(MergeCandidatesTest, GreedyTokenHasItsSoftmaxProbability) {
  const RowChoice choice = Choose({std::log(1.0f), std::log(6.0f), std::log(3.0f)}, 1, {});
  EXPECT_EQ(choice.token, 1);
  EXPECT_NEAR(choice.confidence, 0.6f, 1e-6f);
  EXPECT_NEAR(choice.log_probability, std::log(0.6f), 1e-6f);
  EXPECT_NEAR(choice.entropy, -(0.1 * std::log(0.1) + 0.6 * std::log(0.6) + 0.3 * std::log(0.3)), 1e-6);
  EXPECT_TRUE(choice.finite);
}

TEST(MergeCandidatesTest, ShardsSayWhatOneRankSays) {
  for (const SamplingRule& rule : {SamplingRule{}, SamplingRule{.temperature = 0.7f, .seed = 5},
                                   SamplingRule{.temperature = 1.0f, .top_p = 0.8f, .seed = 6},
                                   SamplingRule{.temperature = 1.3f, .top_k = 5, .seed = 7}}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const std::vector<float> logits = RandomLogits(61, seed);
      const RowChoice one = Choose(logits, 1, rule);
      for (const int32_t ranks : {2, 4, 8}) {
        const RowChoice many = Choose(logits, ranks, rule);
        EXPECT_EQ(many.token, one.token);
        EXPECT_NEAR(many.confidence, one.confidence, 2e-6f);
        EXPECT_NEAR(many.log_probability, one.log_probability, 2e-6f);
        EXPECT_NEAR(many.entropy, one.entropy, 1e-5f);
      }
    }
  }
}

TEST(MergeCandidatesTest, TiesGoToTheSmallestIdAcrossShards) {
  const std::vector<float> logits = {0, 1, 5, 2, 5, 5, 0, 5};
  for (const int32_t ranks : {1, 2, 4, 8}) EXPECT_EQ(Choose(logits, ranks, {}).token, 2);
}

TEST(MergeCandidatesTest, AShardWithoutAnAllowedIdIsPassedOver) {
  EXPECT_EQ(Choose({-kInfinity, -kInfinity, 1, 2}, 2, {}).token, 3);
  EXPECT_EQ(Choose({1, 2, -kInfinity, -kInfinity}, 2, {}).token, 1);
  EXPECT_NEAR(Choose({0, 0, -kInfinity, -kInfinity}, 2, {}).confidence, 0.5f, 1e-6f);
}

TEST(MergeCandidatesTest, ANanOnAnyRankMakesTheRowNotFinite) {
  EXPECT_FALSE(Choose({1, 2, 3, NAN}, 2, {}).finite);
  EXPECT_FALSE(Choose({NAN, 2, 3, 4}, 2, {}).finite);
}

TEST(MergeCandidatesTest, TheMaskIsNeverChosenButKeepsItsMass) {
  const std::vector<float> logits = {std::log(6.0f), std::log(3.0f), std::log(1.0f), -kInfinity};
  const RowChoice choice = Choose(logits, 2, {}, false, 0, /*mask_id=*/0);
  EXPECT_EQ(choice.token, 1);
  EXPECT_NEAR(choice.confidence, 0.3f, 1e-6f);
}

TEST(MergeCandidatesTest, ConfidenceOfADrawnTokenIsRawOrProcessed) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f)};
  const SamplingRule rule{.temperature = 0.5f, .seed = 3};
  for (uint32_t position = 0; position < 8; ++position) {
    const RowChoice raw = Choose(logits, 1, rule, true, position);
    const RowChoice processed = Choose(logits, 1, rule, false, position);
    ASSERT_EQ(raw.token, processed.token);
    EXPECT_NEAR(raw.confidence, raw.token == 1 ? 2.0f / 3 : 1.0f / 3, 1e-6f);
    EXPECT_NEAR(processed.confidence, raw.token == 1 ? 0.8f : 0.2f, 1e-6f);  // Squared odds: 4 to 1.
    EXPECT_EQ(processed.log_probability, raw.log_probability);
  }
}

TEST(MergeCandidatesTest, TopKKeepsTiesAndRenormalises) {
  const std::vector<float> logits = {std::log(4.0f), std::log(2.0f), std::log(2.0f), std::log(1.0f)};
  const SamplingRule rule{.temperature = 1.0f, .top_k = 2, .seed = 1};
  std::vector<int> seen(4, 0);
  for (uint32_t position = 0; position < 200; ++position) {
    const RowChoice choice = Choose(logits, 2, rule, false, position);
    ++seen[static_cast<size_t>(choice.token)];
    EXPECT_NEAR(choice.confidence, choice.token == 0 ? 0.5f : 0.25f, 1e-6f);
  }
  EXPECT_GT(seen[1], 0);
  EXPECT_GT(seen[2], 0) << "ties with the k-th logit survive";
  EXPECT_EQ(seen[3], 0);
}

TEST(MergeCandidatesTest, TopPKeepsTheTokenThatCrossesTheBound) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  // Mass before the third token is 0.8: at p = 0.7 it is dropped, at p = 0.85 it crosses the bound and stays.
  for (const auto& [p, kept] : {std::pair{0.4f, 1}, {0.7f, 2}, {0.85f, 3}, {0.99f, 4}}) {
    int32_t largest = 0;
    for (uint32_t position = 0; position < 400; ++position) {
      largest = std::max(largest, Choose(logits, 2, {.temperature = 1, .top_p = p, .seed = 2}, false, position).token);
    }
    EXPECT_EQ(largest, kept - 1) << "p = " << p;
  }
}

TEST(MergeCandidatesTest, TopPLooksAtWhatTopKLeaves) {
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  // Of the two that top-k leaves the first has mass 4/7 > 0.5, of all four only 0.4 <= 0.5.
  for (uint32_t position = 0; position < 100; ++position) {
    EXPECT_EQ(Choose(logits, 1, {.temperature = 1, .top_p = 0.5f, .top_k = 2, .seed = 4}, false, position).token, 0);
  }
}

TEST(MergeCandidatesTest, ANarrowNucleusOfAWideRowIsItsMostLikelyIds) {
  std::vector<float> logits(2000, 0.0f);  // Flat: 256 ids hold an eighth of the mass, less than p.
  for (uint32_t position = 0; position < 50; ++position) {
    const RowChoice choice = Choose(logits, 4, {.temperature = 1, .top_p = 0.9f, .seed = 8}, false, position);
    EXPECT_LT(choice.token, kTopLogitsMax);
    EXPECT_NEAR(choice.confidence, 1.0f / kTopLogitsMax, 1e-6f);
  }
}

TEST(MergeCandidatesTest, AFilterThatKeepsEveryIdDrawsWhatNoFilterDraws) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const std::vector<float> logits = RandomLogits(40, seed);
    const RowChoice filtered = Choose(logits, 2, {.temperature = 0.9f, .top_k = 40, .seed = seed});
    const RowChoice plain = Choose(logits, 2, {.temperature = 0.9f, .seed = seed});
    EXPECT_EQ(filtered.token, plain.token);
    EXPECT_NEAR(filtered.confidence, plain.confidence, 1e-5f);
  }
}

TEST(MergeCandidatesTest, AVanishingTemperatureIsGreedy) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const std::vector<float> logits = RandomLogits(40, seed);
    const RowChoice cold = Choose(logits, 2, {.temperature = 1e-4f, .seed = seed});
    EXPECT_EQ(cold.token, Choose(logits, 2, {}).token);
    EXPECT_LE(cold.confidence, 1.0f);
  }
}

TEST(MergeCandidatesTest, DrawsFollowTheSoftmax) {
  const std::vector<double> p = {0.4, 0.25, 0.15, 0.1, 0.06, 0.04};
  std::vector<float> logits;
  for (const double x : p) logits.push_back(static_cast<float>(std::log(x)));
  constexpr int kDraws = 20000;
  std::vector<int> seen(p.size(), 0);
  for (uint32_t position = 0; position < kDraws; ++position) {
    ++seen[static_cast<size_t>(Choose(logits, 2, {.temperature = 1.0f, .seed = 11}, false, position).token)];
  }
  double chi_square = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    chi_square += (seen[i] - kDraws * p[i]) * (seen[i] - kDraws * p[i]) / (kDraws * p[i]);
  }
  EXPECT_LT(chi_square, 20.5) << "0.1 % point of chi-square with 5 degrees of freedom";
}

}  // namespace
}  // namespace quicksilver
