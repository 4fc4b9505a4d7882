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
  out.asked_logit = -kInfinity;
  double sum = 0, tempered = 0, mean = 0, tempered_mean = 0;
  const double t = request.temperature > 0 ? request.temperature : 1.0;
  for (size_t id = first; id < end; ++id) {
    if (std::isnan(logits[id])) out.finite = 0;
    sum += std::exp(static_cast<double>(logits[id]));
    tempered += std::exp(logits[id] / t);
    if (logits[id] > -kInfinity) {
      mean += logits[id] * std::exp(static_cast<double>(logits[id]));
      tempered_mean += logits[id] * std::exp(logits[id] / t);
    }
    if (static_cast<int32_t>(id) == request.asked_id) out.asked_logit = logits[id];
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
  out.mean_logit = sum > 0 ? mean / sum : 0.0;
  out.tempered_mean_logit = tempered > 0 ? tempered_mean / tempered : 0.0;
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

std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3.0));
  return logits;
}

double EntropyOf(const std::vector<double>& probabilities) {
  double entropy = 0.0;
  for (const double p : probabilities) entropy -= p > 0.0 ? p * std::log(p) : 0.0;
  return entropy;
}

TEST(MergeCandidatesTest, TheMarginIsToTheSecondBestOfAllShards) {
  for (const int32_t ranks : {1, 2, 4}) {
    EXPECT_NEAR(Choose(LogitsOf({0.1, 0.5, 0.3, 0.1}), ranks, {}).margin, 0.2, 1e-6) << "in another shard";
    EXPECT_NEAR(Choose(LogitsOf({0.3, 0.5, 0.1, 0.1}), ranks, {}).margin, 0.2, 1e-6) << "before, in the same one";
    EXPECT_NEAR(Choose(LogitsOf({0.1, 0.1, 0.5, 0.3}), ranks, {}).margin, 0.2, 1e-6) << "behind, in the same one";
    EXPECT_EQ(Choose({1.0f, 4.0f, 0.0f, 4.0f}, ranks, {}).margin, 0.0f);
    EXPECT_EQ(Choose({-kInfinity, -kInfinity, -kInfinity, 2.0f}, ranks, {}).margin, 1.0f) << "there is no second";
  }
}

TEST(MergeCandidatesTest, NumbersAreOfTheDistributionThatIsDrawnFrom) {
  const std::vector<float> logits = LogitsOf({0.5, 0.25, 0.125, 0.125});
  const SamplingRule rule{.temperature = 0.5f, .seed = 3};  // Squares: 16, 4, 1 and 1 of 22.
  for (const int32_t ranks : {1, 2, 4}) {
    const RowChoice processed = Choose(logits, ranks, rule), raw = Choose(logits, ranks, rule, /*raw=*/true);
    EXPECT_NEAR(processed.margin, 12.0 / 22, 1e-6);
    EXPECT_NEAR(processed.entropy, EntropyOf({16.0 / 22, 4.0 / 22, 1.0 / 22, 1.0 / 22}), 1e-5);
    EXPECT_NEAR(raw.margin, 0.25, 1e-6);
    EXPECT_NEAR(raw.entropy, EntropyOf({0.5, 0.25, 0.125, 0.125}), 1e-5);
    EXPECT_NEAR(processed.log_sum_exp, 3.0, 1e-6);
  }
}

TEST(MergeCandidatesTest, ATruncatedGreedyRowHasTheNumbersOfWhatIsLeft) {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  const SamplingRule rule{.top_k = 2, .truncate_greedy = true};
  EXPECT_TRUE(NeedsTopLogits(rule));
  for (const int32_t ranks : {1, 2, 4}) {
    const RowChoice left = Choose(logits, ranks, rule);
    EXPECT_EQ(left.token, 1);
    EXPECT_NEAR(left.confidence, 4.0 / 7, 1e-6);
    EXPECT_NEAR(left.margin, 1.0 / 7, 1e-6);
    EXPECT_NEAR(left.entropy, EntropyOf({4.0 / 7, 3.0 / 7}), 1e-6);
    EXPECT_NEAR(left.log_probability, std::log(0.4), 1e-6) << "is raw";
    EXPECT_NEAR(Choose(logits, ranks, rule, /*raw=*/true).confidence, 0.4, 1e-6);
    EXPECT_NEAR(Choose(logits, ranks, {.top_k = 2}).confidence, 0.4, 1e-6);
    EXPECT_NEAR(Choose(logits, ranks, {.top_p = 0.5f, .truncate_greedy = true}).confidence, 4.0 / 7, 1e-6);
    EXPECT_EQ(Choose(logits, ranks, {.top_k = 1, .truncate_greedy = true}).margin, 1.0f);
  }
}

TEST(MergeCandidatesTest, TopPLooksAtAllIdsWhenItComesFirst) {
  const std::vector<float> logits = LogitsOf({0.4, 0.3, 0.2, 0.1});
  // Before the third id lies 0.7 of all ids' mass, but 7/9 of what top-k leaves.
  SamplingRule rule{.top_p = 0.75f, .top_k = 3, .truncate_greedy = true};
  EXPECT_NEAR(Choose(logits, 2, rule).confidence, 4.0 / 7, 1e-6);
  rule.top_p_first = true;
  EXPECT_NEAR(Choose(logits, 2, rule).confidence, 4.0 / 9, 1e-6);
  rule.top_k = 2;
  EXPECT_NEAR(Choose(logits, 2, rule).confidence, 4.0 / 7, 1e-6) << "top-k cuts what top-p has left";
}

TEST(MergeCandidatesTest, TheAskedIdHasItsRawProbability) {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  for (const int32_t ranks : {1, 2, 4}) {
    for (int32_t id = 0; id < 4; ++id) {
      CandidateRequest request;
      request.temperature = 0.3f;
      request.asked_id = id;
      const Records records = MakeRecords(logits, ranks, request);
      const RowChoice choice = MergeCandidates(records.Row(), {.temperature = 0.3f}, false, request.place);
      EXPECT_NEAR(choice.asked_probability, std::vector<double>({0.1, 0.4, 0.3, 0.2})[static_cast<size_t>(id)], 1e-6);
    }
  }
  EXPECT_EQ(Choose(logits, 2, {}).asked_probability, 0.0f) << "nothing was asked";
}

TEST(MergeCandidatesTest, AlternativesAreRankedAcrossShardsByRawProbability) {
  const std::vector<float> logits = LogitsOf({0.1, 0.3, 0.15, 0.3, 0.05, 0.1});
  for (const int32_t ranks : {1, 2, 3}) {
    const Records records = MakeRecords(logits, ranks, {.temperature = 0.5f});
    const RowChoice choice = MergeCandidates(records.Row(), {.temperature = 0.5f}, false, {});
    std::vector<TopLogit> tops(kTopReportedMax);
    ReportTops(records.Row(), 4, choice.log_sum_exp, tops.data());
    const int32_t ids[] = {1, 3, 2, 0};
    const double probabilities[] = {0.3, 0.3, 0.15, 0.1};
    for (size_t k = 0; k < 4; ++k) {
      EXPECT_EQ(tops[k].id, ids[k]);
      EXPECT_NEAR(tops[k].logit, std::log(probabilities[k]), 1e-6);
    }
    for (size_t k = 4; k < tops.size(); ++k) EXPECT_EQ(tops[k].id, -1) << "more were not asked for";
    ReportTops(records.Row(), kTopReportedMax, choice.log_sum_exp, tops.data());
    EXPECT_EQ(tops[5].id, 4);
    EXPECT_EQ(tops[6].id, -1) << "there are no more";
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
