#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/kernels/candidates_case.h"

namespace quicksilver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class CandidatesTest : public OpsTest {
 protected:
  /// Candidates of rows whose logits are exactly `logits`, [rows, ids of the shard]: the rows of the identity select
  /// them. Numbers should be exact in bf16.
  CandidateResults OfLogits(const HostMatrix& logits, const VocabularyShard& shard,
                            const std::vector<CandidateRequest>& requests, int32_t top_count = 0) {
    HostMatrix hidden(logits.rows, logits.rows), weight(logits.cols, logits.rows);
    for (int64_t r = 0; r < logits.rows; ++r) {
      hidden.at(r, r) = 1.0f;
      for (int64_t id = 0; id < logits.cols; ++id) weight.at(id, r) = logits.at(r, id);
    }
    const std::unique_ptr<GemmWeight> prepared = Prepare(weight);
    return RunCandidates(*this, hidden, *prepared, shard, requests, top_count);
  }

  /// Of a single row that starts at id 0.
  Candidate OfRow(const std::vector<float>& logits, CandidateRequest request = {}, int32_t mask_id = -1) {
    const int32_t ids = static_cast<int32_t>(logits.size());
    return OfLogits({1, ids, logits}, {.vocabulary = ids, .mask_id = mask_id}, {request}).candidates[0];
  }
};

/// What the definition says, in double.
struct Expected {
  std::vector<TopLogit> ranked;  // Allowed ids, best first.
  double log_sum_exp = -kInfinity;
  double mean_logit = 0.0;
  double tempered_log_sum_exp = -kInfinity;
};

Expected Define(const HostMatrix& hidden, const HostMatrix& weight, const VocabularyShard& shard,
                const CandidateRequest& request) {
  Expected expected;
  double sum = 0.0, tempered_sum = 0.0, weighted_sum = 0.0;
  for (int32_t o = 0; o < weight.rows; ++o) {
    const auto dot = [&](int32_t row) {
      double z = 0.0;
      for (int64_t h = 0; h < hidden.cols; ++h) z += double{hidden.at(row, h)} * weight.at(o, h);
      return z;
    };
    const int32_t id = shard.first_id + o;
    if (id >= shard.vocabulary || id == request.suppressed_id) continue;
    double z = dot(request.row);
    if (request.guide_row >= 0) {
      const double u = dot(request.guide_row);
      z = u + (request.guidance + 1.0) * (z - u);
    }
    sum += std::exp(z);
    weighted_sum += z * std::exp(z);
    tempered_sum += std::exp(z / (request.temperature > 0.0f ? request.temperature : 1.0f));
    if (id != shard.mask_id) expected.ranked.push_back({static_cast<float>(z), id});
  }
  std::sort(expected.ranked.begin(), expected.ranked.end(),
            [](const TopLogit& a, const TopLogit& b) { return a.logit > b.logit; });
  expected.log_sum_exp = std::log(sum);
  expected.mean_logit = weighted_sum / sum;
  expected.tempered_log_sum_exp = std::log(tempered_sum);
  return expected;
}

TEST_P(CandidatesTest, AgreesWithTheDefinitionOnRandomRows) {
  const int64_t H = 48;
  const HostMatrix hidden = Rounded(RandomMatrix(20, H, 1), dtype());
  const HostMatrix weight = Rounded(RandomMatrix(1500, H, 2, 0.4f), dtype());
  const VocabularyShard shard = {.first_id = 3000, .vocabulary = 4490, .mask_id = 3777};
  const std::unique_ptr<GemmWeight> prepared = Prepare(weight);
  std::vector<CandidateRequest> requests;
  for (int32_t r = 0; r < 31; ++r) {
    requests.push_back({.row = r % 20,
                        .guide_row = r % 3 == 0 ? (r + 5) % 20 : -1,
                        .guidance = 0.5f * static_cast<float>(r % 4),
                        .temperature = r % 2 == 0 ? 0.0f : 0.3f * static_cast<float>(r % 5),
                        .suppressed_id = r % 4 == 0 ? 3001 : -1,
                        .place = {.seed = 9, .position = static_cast<uint32_t>(r)}});
  }
  const int32_t top_count = 50;
  const CandidateResults results = RunCandidates(*this, hidden, *prepared, shard, requests, top_count);
  // Float sums of 48 products of size 0.4, times the guidance.
  constexpr double kTolerance = 2e-5;
  for (size_t r = 0; r < requests.size(); ++r) {
    SCOPED_TRACE(absl::StrCat("request ", r));
    const Expected expected = Define(hidden, weight, shard, requests[r]);
    const Candidate& c = results.candidates[r];
    EXPECT_EQ(c.finite, 1);
    EXPECT_EQ(c.best_id, expected.ranked[0].id);
    EXPECT_NEAR(c.best_logit, expected.ranked[0].logit, kTolerance);
    EXPECT_NEAR(c.second_logit, expected.ranked[1].logit, kTolerance);
    EXPECT_NEAR(c.log_sum_exp, expected.log_sum_exp, kTolerance);
    EXPECT_NEAR(c.mean_logit, expected.mean_logit, 2 * kTolerance);
    for (int32_t k = 0; k < top_count; ++k) {
      EXPECT_NEAR(results.top[r][k].logit, expected.ranked[k].logit, kTolerance);
      EXPECT_TRUE(k == 0 || results.top[r][k].logit <= results.top[r][k - 1].logit);
    }
    if (requests[r].temperature == 0.0f) {
      EXPECT_EQ(c.sampled_id, c.best_id);
      EXPECT_EQ(c.sampled_logit, c.best_logit);
      EXPECT_EQ(c.sampled_score, c.best_logit);
      EXPECT_EQ(c.tempered_log_sum_exp, c.log_sum_exp);
      continue;
    }
    EXPECT_NEAR(c.tempered_log_sum_exp, expected.tempered_log_sum_exp, kTolerance / requests[r].temperature);
    // Doing the draw for every id picks the same one.
    TopLogit sampled;
    double score = -kInfinity;
    for (const TopLogit& z : expected.ranked) {
      const double one = z.logit / double{requests[r].temperature} + GumbelDraw(requests[r].place, z.id);
      if (one > score) score = one, sampled = z;
    }
    EXPECT_EQ(c.sampled_id, sampled.id);
    EXPECT_NEAR(c.sampled_logit, sampled.logit, kTolerance);
    EXPECT_NEAR(c.sampled_score, score, kTolerance / requests[r].temperature);
  }
}

TEST_P(CandidatesTest, TiesGoToTheSmallestId) {
  // Ids far enough apart to be looked at by different threads.
  std::vector<float> logits(5000, -1.0f);
  for (const int32_t id : {2711, 300, 4999, 301}) logits[id] = 4.0f;
  const CandidateResults results = OfLogits({1, 5000, logits}, {.vocabulary = 5000}, {{}}, 5);
  EXPECT_EQ(results.candidates[0].best_id, 300);
  EXPECT_EQ(results.candidates[0].second_logit, 4.0f);
  const int32_t expected[] = {300, 301, 2711, 4999, 0};
  for (int k = 0; k < 5; ++k) EXPECT_EQ(results.top[0][k].id, expected[k]);
}

TEST_P(CandidatesTest, TheMaskIsNeverChosenButKeepsItsMass) {
  CandidateRequest request = {.temperature = 0.5f, .place = {.seed = 1}};
  const std::vector<float> logits = {1.0f, 6.0f, 2.0f};
  const CandidateResults results =
      OfLogits({1, 3, logits}, {.vocabulary = 3, .mask_id = 1}, {request}, /*top_count=*/3);
  const Candidate& c = results.candidates[0];
  EXPECT_EQ(c.best_id, 2);
  EXPECT_EQ(c.second_logit, 1.0f);
  EXPECT_NE(c.sampled_id, 1);
  EXPECT_EQ(results.top[0][0].id, 2);
  EXPECT_EQ(results.top[0][1].id, 0);
  EXPECT_EQ(results.top[0][2].id, -1);
  EXPECT_NEAR(c.log_sum_exp, std::log(std::exp(1.0) + std::exp(6.0) + std::exp(2.0)), 1e-5);
  EXPECT_NEAR(c.tempered_log_sum_exp, std::log(std::exp(2.0) + std::exp(12.0) + std::exp(4.0)), 1e-5);
}

TEST_P(CandidatesTest, AMaskThatOutweighsAllElseStillLeavesASample) {
  const Candidate c = OfRow({-300.0f, 300.0f, -300.0f}, {.temperature = 0.25f, .place = {.seed = 3}}, /*mask_id=*/1);
  EXPECT_NE(c.sampled_id, 1);
  EXPECT_NE(c.sampled_id, -1);
  EXPECT_EQ(c.sampled_logit, -300.0f);
}

TEST_P(CandidatesTest, PaddingRowsCountAsMinusInfinity) {
  const HostMatrix logits(1, 6, {1.0f, 0.5f, 0.25f, 90.0f, kNan, kInfinity});
  CandidateRequest request = {.temperature = 1.0f};
  const CandidateResults results = OfLogits(logits, {.first_id = 7, .vocabulary = 10}, {request}, 4);
  EXPECT_EQ(results.candidates[0].finite, 1);
  EXPECT_EQ(results.candidates[0].best_id, 7);
  EXPECT_LT(results.candidates[0].sampled_id, 10);
  EXPECT_NEAR(results.candidates[0].log_sum_exp, std::log(std::exp(1.0) + std::exp(0.5) + std::exp(0.25)), 1e-6);
  EXPECT_EQ(results.top[0][3].id, -1);
  EXPECT_EQ(results.top[0][3].logit, -kInfinity);
}

TEST_P(CandidatesTest, TheSuppressedIdCountsAsMinusInfinity) {
  const Candidate c = OfRow({3.0f, 8.0f, 2.0f}, {.suppressed_id = 1});
  EXPECT_EQ(c.best_id, 0);
  EXPECT_EQ(c.second_logit, 2.0f);
  EXPECT_NEAR(c.log_sum_exp, std::log(std::exp(3.0) + std::exp(2.0)), 1e-6);
  EXPECT_EQ(OfRow({3.0f, kNan, 2.0f}, {.suppressed_id = 1}).finite, 1);
}

TEST_P(CandidatesTest, NanAndInfinityAreReportedForTheirRowAlone) {
  const int64_t H = 24;
  HostMatrix hidden = RandomMatrix(3, H, 1);
  hidden.at(1, 5) = kNan;
  const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(100, H, 2));
  const CandidateResults results =
      RunCandidates(*this, hidden, *weight, {.vocabulary = 100}, {{.row = 0}, {.row = 1}, {.row = 2}}, 3);
  EXPECT_EQ(results.candidates[0].finite, 1);
  EXPECT_EQ(results.candidates[1].finite, 0);
  EXPECT_EQ(results.candidates[2].finite, 1);
  EXPECT_EQ(OfRow({1.0f, kInfinity, 2.0f}).finite, 0);
  EXPECT_EQ(OfRow({1.0f, kNan, 2.0f}).finite, 0);
  EXPECT_EQ(OfRow({1.0f, kNan, 2.0f}, {}, /*mask_id=*/1).finite, 0);
}

TEST_P(CandidatesTest, AMinusInfinityLogitWeighsNothing) {
  const Candidate c = OfRow({1.0f, -kInfinity, 1.0f}, {.temperature = 2.0f});
  EXPECT_EQ(c.finite, 1);
  EXPECT_NEAR(c.log_sum_exp, 1.0 + std::log(2.0), 1e-6);
  EXPECT_NEAR(c.mean_logit, 1.0, 1e-6);
  EXPECT_NEAR(c.tempered_log_sum_exp, 0.5 + std::log(2.0), 1e-6);
  EXPECT_EQ(c.second_logit, 1.0f);
  EXPECT_NE(c.sampled_id, 1);
}

TEST_P(CandidatesTest, WhenAllIsMinusInfinityTheSmallestIdIsBest) {
  const Candidate c = OfRow({-kInfinity, -kInfinity, -kInfinity}, {}, /*mask_id=*/0);
  EXPECT_EQ(c.finite, 1);
  EXPECT_EQ(c.best_id, 1);
  EXPECT_EQ(c.best_logit, -kInfinity);
  EXPECT_EQ(c.log_sum_exp, -kInfinity);
}

TEST_P(CandidatesTest, AShardWithoutAnAllowedIdHasNoBest) {
  const CandidateResults padding = OfLogits({1, 2, {5.0f, 6.0f}}, {.first_id = 10, .vocabulary = 10}, {{}}, 1);
  EXPECT_EQ(padding.candidates[0].best_id, -1);
  EXPECT_EQ(padding.candidates[0].sampled_id, -1);
  EXPECT_EQ(padding.candidates[0].log_sum_exp, -kInfinity);
  EXPECT_EQ(padding.top[0][0].id, -1);
  const CandidateResults mask =
      OfLogits({1, 1, {5.0f}}, {.first_id = 10, .vocabulary = 11, .mask_id = 10}, {{.temperature = 1.0f}});
  EXPECT_EQ(mask.candidates[0].best_id, -1);
  EXPECT_EQ(mask.candidates[0].sampled_id, -1);
  EXPECT_EQ(mask.candidates[0].log_sum_exp, 5.0f);
  EXPECT_EQ(mask.candidates[0].mean_logit, 5.0f);
}

TEST_P(CandidatesTest, GuidanceMovesAwayFromTheUnconditionalRow) {
  const HostMatrix logits(2, 3, {1.0f, 2.0f, 4.0f, /* unconditional */ 3.0f, 2.0f, -1.0f});
  const CandidateRequest request = {.row = 0, .guide_row = 1, .guidance = 0.5f};
  const CandidateResults results = OfLogits(logits, {.vocabulary = 3}, {request}, 3);
  // z = u + 1.5 (c - u)
  EXPECT_EQ(results.top[0][0].logit, 6.5f);
  EXPECT_EQ(results.top[0][1].logit, 2.0f);
  EXPECT_EQ(results.top[0][2].logit, 0.0f);
  EXPECT_EQ(results.candidates[0].best_id, 2);
}

TEST_P(CandidatesTest, EqualLogitsHaveTheEntropyOfAllIds) {
  const Candidate c = OfRow(std::vector<float>(777, 2.5f));
  EXPECT_NEAR(c.log_sum_exp - c.mean_logit, std::log(777.0), 1e-5);
}

TEST_P(CandidatesTest, SamplesComeAsOftenAsTheSoftmaxSays) {
  const std::vector<float> logits = {1.0f, 0.5f, -0.5f, 2.0f, 0.0f, -2.0f, 1.5f, 0.25f};
  const double temperature = 0.75;
  const HostMatrix hidden(1, 1, {1.0f});
  const std::unique_ptr<GemmWeight> weight = Prepare({8, 1, logits});
  constexpr int32_t kDraws = 8000;
  std::vector<CandidateRequest> requests;
  for (int32_t draw = 0; draw < kDraws; ++draw) {
    requests.push_back(
        {.temperature = static_cast<float>(temperature),
         .place = {
             .seed = 42, .position = static_cast<uint32_t>(draw / 16), .step = static_cast<uint32_t>(draw % 16)}});
  }
  std::vector<int> counts(8);
  for (const Candidate& c : RunCandidates(*this, hidden, *weight, {.vocabulary = 8}, requests).candidates) {
    ++counts[c.sampled_id];
  }
  double sum = 0.0, chi_square = 0.0;
  for (const float z : logits) sum += std::exp(z / temperature);
  for (int id = 0; id < 8; ++id) {
    const double expected = kDraws * std::exp(logits[id] / temperature) / sum;
    chi_square += (counts[id] - expected) * (counts[id] - expected) / expected;
  }
  EXPECT_LT(chi_square, 24.3);  // 7 degrees of freedom: exceeded once in a thousand seeds, and this seed is fixed.
}

TEST_P(CandidatesTest, SamplesDoNotDependOnTheOtherShard) {
  const int64_t H = 16;
  const HostMatrix hidden = RandomMatrix(12, H, 1), weight = RandomMatrix(400, H, 2, 0.3f);
  HostMatrix low(250, H), high(150, H);
  for (int64_t o = 0; o < 400; ++o) {
    for (int64_t h = 0; h < H; ++h) (o < 250 ? low.at(o, h) : high.at(o - 250, h)) = weight.at(o, h);
  }
  std::vector<CandidateRequest> requests;
  for (int32_t r = 0; r < 12; ++r) {
    requests.push_back({.row = r, .temperature = 1.0f, .place = {.seed = 5, .position = static_cast<uint32_t>(r)}});
  }
  const auto whole = RunCandidates(*this, hidden, *Prepare(weight), {.vocabulary = 400}, requests).candidates;
  const auto first = RunCandidates(*this, hidden, *Prepare(low), {.vocabulary = 400}, requests).candidates;
  const auto second =
      RunCandidates(*this, hidden, *Prepare(high), {.first_id = 250, .vocabulary = 400}, requests).candidates;
  int from_second = 0;
  for (int32_t r = 0; r < 12; ++r) {
    const Candidate& winner = second[r].sampled_score > first[r].sampled_score ? second[r] : first[r];
    from_second += &winner == &second[r];
    EXPECT_EQ(whole[r].sampled_id, winner.sampled_id);
  }
  EXPECT_GT(from_second, 0);
  EXPECT_LT(from_second, 12);
}

TEST_P(CandidatesTest, AVanishingTemperatureSamplesTheBest) {
  for (const float temperature : {1e-3f, 1e-10f, 1e-30f}) {
    for (uint32_t position = 0; position < 20; ++position) {
      const Candidate c = OfRow({1.0f, 2.0f, 1.75f}, {.temperature = temperature, .place = {.position = position}});
      EXPECT_EQ(c.sampled_id, 1);
      EXPECT_NEAR(c.tempered_log_sum_exp, 2.0 / temperature, 1e-6 / temperature);
    }
  }
}

TEST_P(CandidatesTest, TheLongestTopListIsRankedAcrossTheWholeShard) {
  const HostMatrix hidden(1, 1, {1.0f}), weight = Rounded(RandomMatrix(3000, 1, 4), DType::kBf16);
  const CandidateResults results =
      RunCandidates(*this, hidden, *Prepare(weight), {.vocabulary = 3000}, {{}}, kTopLogitsMax);
  std::vector<TopLogit> expected;
  for (int32_t id = 0; id < 3000; ++id) expected.push_back({weight.at(id, 0), id});
  std::sort(expected.begin(), expected.end(), [](const TopLogit& a, const TopLogit& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  });
  for (int32_t k = 0; k < kTopLogitsMax; ++k) {
    ASSERT_EQ(results.top[0][k].id, expected[k].id) << "place " << k;
    ASSERT_EQ(results.top[0][k].logit, expected[k].logit);
  }
}

// A captured step has room for more requests than it may hold.
TEST_P(CandidatesTest, PaddingRequestsHaveNoCandidate) {
  const int64_t H = 24;
  const HostMatrix hidden = RandomMatrix(40, H, 1);
  const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(1300, H, 2, 0.4f));
  const CandidateRequest padding = {.row = -1, .temperature = 1.0f};
  std::vector<CandidateRequest> real, padded = {padding};
  for (int32_t r = 0; r < 40; ++r) {
    real.push_back({.row = r, .guide_row = r % 3 == 0 ? 39 - r : -1, .guidance = 1.0f, .temperature = 0.5f * (r % 2)});
    padded.push_back(real.back());
    padded.insert(padded.end(), static_cast<size_t>(r % 4), padding);
  }
  const CandidateResults expected = RunCandidates(*this, hidden, *weight, {.vocabulary = 1300}, real, 3);
  const CandidateResults results = RunCandidates(*this, hidden, *weight, {.vocabulary = 1300}, padded, 3);
  size_t next = 0;
  for (size_t r = 0; r < padded.size(); ++r) {
    const Candidate& c = results.candidates[r];
    EXPECT_EQ(c.finite, 1);
    if (padded[r].row < 0) {
      EXPECT_EQ(c.best_id, -1);
      EXPECT_EQ(c.sampled_id, -1);
      EXPECT_EQ(c.second_logit, -kInfinity);
      EXPECT_EQ(c.log_sum_exp, -kInfinity);
      EXPECT_EQ(results.top[r][0].id, -1);
      continue;
    }
    EXPECT_EQ(c.best_id, expected.candidates[next].best_id);
    EXPECT_EQ(c.log_sum_exp, expected.candidates[next].log_sum_exp);
    EXPECT_EQ(c.sampled_id, expected.candidates[next].sampled_id);
    EXPECT_EQ(results.top[r][2].id, expected.top[next].at(2).id);
    ++next;
  }
  EXPECT_EQ(RunCandidates(*this, hidden, *weight, {.vocabulary = 1300}, {padding, padding}, 0).candidates[1].best_id,
            -1);
}

TEST_P(CandidatesTest, NoRequestsNoResults) {
  const HostMatrix hidden = RandomMatrix(2, 8, 1);
  EXPECT_TRUE(RunCandidates(*this, hidden, *Prepare(RandomMatrix(9, 8, 2)), {.vocabulary = 9}, {}).candidates.empty());
}

INSTANTIATE_OPS_TEST(CandidatesTest);

}  // namespace
}  // namespace quicksilver
