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

/// What the request adds to an id's logit.
float BiasOf(const CandidateBatch& batch, const CandidateRequest& request, int32_t id) {
  for (int32_t i = request.first_bias; i < request.first_bias + request.bias_count; ++i) {
    if (batch.biases[i].id == id) return batch.biases[i].bias;
  }
  return 0.0f;
}

/// The logits of one row as the request sees them: capped, guided, biased, and only the ids that exist and are neither
/// suppressed nor forbidden.
std::vector<TopLogit> LogitsOf(const ConstMatrix& hidden, const ReferenceWeight& weight, const VocabularyShard& shard,
                               const CandidateBatch& batch, const CandidateRequest& request) {
  const auto logit = [&](int64_t row, int64_t o) {
    float sum = 0.0f;
    for (int64_t h = 0; h < hidden.cols; ++h) sum += Load(hidden, row, h) * weight.at(o, h);
    return shard.soft_cap > 0.0f ? shard.soft_cap * std::tanh(sum / shard.soft_cap) : sum;
  };
  std::vector<TopLogit> logits;
  for (int64_t o = 0; o < weight.out_features(); ++o) {
    const int32_t id = shard.first_id + static_cast<int32_t>(o);
    const float bias = BiasOf(batch, request, id);
    if (id >= shard.vocabulary || id == request.suppressed_id || bias == kMinusInfinity) continue;
    float z = logit(request.row, o);
    if (request.guide_row >= 0) {
      const float unconditional = logit(request.guide_row, o);
      z = unconditional + (request.guidance + 1.0f) * (z - unconditional);
    }
    logits.push_back({z + bias, id});
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

double MeanLogit(const std::vector<TopLogit>& logits, double temperature, double log_sum_exp) {
  double mean = 0.0;
  for (const TopLogit& z : logits) {
    if (z.logit > kMinusInfinity) mean += z.logit * std::exp(z.logit / temperature - log_sum_exp);
  }
  return mean;
}

/// Keeps z in the request's slot; what was there is weighed by what z says.
void TakeHistory(const std::vector<TopLogit>& logits, const CandidateBatch& batch, const CandidateRequest& request,
                 int32_t first_id, int64_t ids, Candidate* out) {
  if (request.history_slot < 0) return;
  float* const slot = batch.history + request.history_slot * ids;
  for (const TopLogit& z : logits) {
    const double weight = std::exp(z.logit - out->log_sum_exp);
    if (request.history_valid != 0 && weight > 0.0) out->mean_previous += weight * slot[z.id - first_id];
  }
  std::fill_n(slot, ids, kMinusInfinity);
  for (const TopLogit& z : logits) slot[z.id - first_id] = z.logit;
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

/// The sums of a row without NaN or +inf.
void SumUp(const std::vector<TopLogit>& logits, const CandidateRequest& request, Candidate* out) {
  out->log_sum_exp = LogSumExp(logits, 1.0);
  out->mean_logit = MeanLogit(logits, 1.0, out->log_sum_exp);
  out->tempered_log_sum_exp = out->log_sum_exp;
  out->tempered_mean_logit = out->mean_logit;
  if (request.temperature > 0.0f) {
    out->tempered_log_sum_exp = LogSumExp(logits, request.temperature);
    out->tempered_mean_logit = MeanLogit(logits, request.temperature, out->tempered_log_sum_exp);
  }
  for (const TopLogit& z : logits) {
    if (z.id == request.asked_id) out->asked_logit = z.logit;
  }
}

/// The best ids of a row without NaN or +inf. ranked: what may be chosen, best first.
void ChooseBest(const std::vector<TopLogit>& ranked, const CandidateRequest& request, Candidate* out) {
  if (!ranked.empty()) {
    out->best_id = ranked[0].id;
    out->best_logit = ranked[0].logit;
  }
  if (ranked.size() > 1) out->second_logit = ranked[1].logit;
  out->sampled_id = out->best_id;
  out->sampled_logit = out->best_logit;
  out->sampled_score = out->best_logit;
  if (request.temperature > 0.0f) Sample(ranked, request, out);
}

}  // namespace

void ReferenceOps::Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                              const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) {
  CHECK(hidden.cols == weight.in_features() && top_count >= 0 && top_count <= kTopLogitsMax);
  for (int32_t r = 0; r < batch.count; ++r) {
    const CandidateRequest& request = batch.requests[r];
    CHECK(request.row >= -1 && request.row < hidden.rows && request.guide_row < hidden.rows);
    std::vector<TopLogit> logits;
    if (request.row >= 0) logits = LogitsOf(hidden, static_cast<const ReferenceWeight&>(weight), shard, batch, request);
    out[r] = Candidate{.best_logit = kMinusInfinity,
                       .second_logit = kMinusInfinity,
                       .sampled_logit = kMinusInfinity,
                       .sampled_score = kMinusInfinity,
                       .asked_logit = kMinusInfinity};
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
    std::copy_n(ranked.begin(), std::min<size_t>(ranked.size(), top_count), top + static_cast<int64_t>(r) * top_count);
    SumUp(logits, request, &out[r]);
    ChooseBest(ranked, request, &out[r]);
    if (request.row >= 0) TakeHistory(logits, batch, request, shard.first_id, weight.out_features(), &out[r]);
  }
}

}  // namespace quicksilver
