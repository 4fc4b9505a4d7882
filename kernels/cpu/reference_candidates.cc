#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/host_matrix.h"
#include "kernels/cpu/reference_ops.h"

namespace quicksilver {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// The logits of one row as the request sees them: guided, and only the ids that exist and are not suppressed.
std::vector<TopLogit> LogitsOf(const ConstMatrix& hidden, const ReferenceWeight& weight, const VocabularyShard& shard,
                               const CandidateRequest& request) {
  const auto dot = [&](int64_t row, int64_t o) {
    float sum = 0.0f;
    for (int64_t h = 0; h < hidden.cols; ++h) sum += Load(hidden, row, h) * weight.at(o, h);
    return sum;
  };
  std::vector<TopLogit> logits;
  for (int64_t o = 0; o < weight.out_features(); ++o) {
    const int32_t id = shard.first_id + static_cast<int32_t>(o);
    if (id >= shard.vocabulary || id == request.suppressed_id) continue;
    const float conditional = dot(request.row, o);
    if (request.guide_row < 0) {
      logits.push_back({conditional, id});
    } else {
      const float unconditional = dot(request.guide_row, o);
      logits.push_back({unconditional + (request.guidance + 1.0f) * (conditional - unconditional), id});
    }
  }
  return logits;
}

/// ln sum e^(z / temperature).
double LogSumExp(const std::vector<TopLogit>& logits, double temperature) {
  double largest = kMinusInfinity;
  for (const TopLogit& z : logits) largest = std::max<double>(largest, z.logit);
  if (std::isinf(largest)) return largest;
  double sum = 0.0;
  for (const TopLogit& z : logits) sum += std::exp((z.logit - largest) / temperature);
  return largest / temperature + std::log(sum);
}

double MeanLogit(const std::vector<TopLogit>& logits, double log_sum_exp) {
  double mean = 0.0;
  for (const TopLogit& z : logits) {
    if (z.logit > kMinusInfinity) mean += z.logit * std::exp(z.logit - log_sum_exp);
  }
  return mean;
}

void Sample(const std::vector<TopLogit>& ranked, const CandidateRequest& request, Candidate* out) {
  out->sampled_id = -1;
  for (const TopLogit& z : ranked) {
    const double score = static_cast<double>(z.logit) / static_cast<double>(request.temperature) +
                         GumbelDraw(request.place, static_cast<uint32_t>(z.id));
    const bool better =
        out->sampled_id < 0 || score > out->sampled_score || (score == out->sampled_score && z.id < out->sampled_id);
    if (!better) continue;
    out->sampled_id = z.id;
    out->sampled_logit = z.logit;
    out->sampled_score = score;
  }
}

}  // namespace

void ReferenceOps::Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                              const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) {
  CHECK(hidden.cols == weight.in_features() && top_count >= 0 && top_count <= kTopLogitsMax);
  for (int32_t r = 0; r < batch.count; ++r) {
    const CandidateRequest& request = batch.requests[r];
    CHECK(request.row >= -1 && request.row < hidden.rows && request.guide_row < hidden.rows);
    std::vector<TopLogit> logits;
    if (request.row >= 0) logits = LogitsOf(hidden, static_cast<const ReferenceWeight&>(weight), shard, request);
    out[r] = Candidate{.best_logit = kMinusInfinity,
                       .second_logit = kMinusInfinity,
                       .sampled_logit = kMinusInfinity,
                       .sampled_score = kMinusInfinity};
    std::fill_n(top + static_cast<int64_t>(r) * top_count, top_count, TopLogit{kMinusInfinity, -1});
    for (const TopLogit& z : logits) {
      if (std::isnan(z.logit) || z.logit == -kMinusInfinity) out[r].finite = 0;
    }
    if (out[r].finite == 0) continue;

    std::vector<TopLogit> ranked = logits;
    std::erase_if(ranked, [&](const TopLogit& z) { return z.id == shard.mask_id; });
    std::sort(ranked.begin(), ranked.end(), [](const TopLogit& a, const TopLogit& b) {
      return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    });
    if (!ranked.empty()) {
      out[r].best_id = ranked[0].id;
      out[r].best_logit = ranked[0].logit;
    }
    if (ranked.size() > 1) out[r].second_logit = ranked[1].logit;
    std::copy_n(ranked.begin(), std::min<size_t>(ranked.size(), top_count), top + static_cast<int64_t>(r) * top_count);

    const double log_sum_exp = LogSumExp(logits, 1.0);
    out[r].log_sum_exp = log_sum_exp;
    out[r].mean_logit = static_cast<float>(MeanLogit(logits, log_sum_exp));
    if (request.temperature > 0.0f) {
      Sample(ranked, request, &out[r]);
      out[r].tempered_log_sum_exp = LogSumExp(logits, request.temperature);
    } else {
      out[r].sampled_id = out[r].best_id;
      out[r].sampled_logit = out[r].best_logit;
      out[r].sampled_score = out[r].best_logit;
      out[r].tempered_log_sum_exp = out[r].log_sum_exp;
    }
  }
}

}  // namespace quicksilver
