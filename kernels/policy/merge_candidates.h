#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/philox.h"
#include "kernels/candidate.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// Most ranks whose records can be merged.
inline constexpr int32_t kRanksMax = 64;

/// How a token is drawn from a row's logits z: z / T, then top-k (ties with the k-th survive), then top-p (the token
/// that crosses p is kept), then the arg-max of z / T + GumbelDraw over what is left.
struct SamplingRule {
  float temperature = 0.0f;  ///< 0 is greedy, and divides by 1.
  float top_p = 1.0f;        ///< 1 is off.
  int32_t top_k = 0;         ///< 0 is off, else at most kTopLogitsMax.
  bool top_p_first = false;  ///< Top-p looks at all ids rather than at what top-k leaves (Dream).
  /// The numbers of a greedy row, too, are of what top-k and top-p leave (Dream). Else both are off at temperature 0.
  bool truncate_greedy = false;
  uint64_t seed = 0;
  uint32_t choice = 0;
};

/// True when a draw needs the ranks' top lists besides their candidates.
QS_HOST_DEVICE inline bool NeedsTopLogits(const SamplingRule& rule) {
  return (rule.temperature > 0.0f || rule.truncate_greedy) && (rule.top_k > 0 || rule.top_p < 1.0f);
}

/// What all ranks say about one row. Rank r's candidate is candidates[r * candidate_stride]; its top list, descending,
/// starts at top[r * top_stride] and has top_count entries (0: no lists).
struct GatheredRow {
  const Candidate* candidates = nullptr;
  int64_t candidate_stride = 0;
  const TopLogit* top = nullptr;
  int64_t top_stride = 0;
  int32_t top_count = 0;
  int32_t ranks = 0;
};

/// The token of one row. When not `finite` the other fields mean nothing.
struct RowChoice {
  TokenId token = -1;
  float confidence = 0.0f;         ///< Probability of `token`: raw or processed, see MergeCandidates().
  float log_probability = 0.0f;    ///< Natural log of its raw probability (before temperature, top-k and top-p).
  float margin = 0.0f;             ///< Probability of the best token minus the second's, of the same distribution.
  float entropy = 0.0f;            ///< In nats, of the same distribution.
  float asked_probability = 0.0f;  ///< Raw, of CandidateRequest::asked_id.
  double log_sum_exp = 0.0;        ///< Of the raw logits, all ranks together.
  float mean_previous = 0.0f;      ///< Candidate::mean_previous of all ranks together.
  bool finite = false;
};

namespace merging {

inline constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// What the ranks' candidates say together.
struct Merged {
  int32_t best_id = -1;
  double best_logit = kMinusInfinity;
  int32_t sampled_id = -1;
  double sampled_logit = kMinusInfinity;
  double sampled_score = kMinusInfinity;
  double log_sum_exp = kMinusInfinity;
  double tempered_log_sum_exp = kMinusInfinity;
  double mean_logit = 0.0;
};

/// ln sum over ranks of e^field, in rank order; one rank's value comes out unchanged.
QS_HOST_DEVICE inline double MergeLogSumExp(const GatheredRow& row, double Candidate::*field) {
  double largest = kMinusInfinity;
  for (int32_t r = 0; r < row.ranks; ++r) {
    largest = std::fmax(largest, row.candidates[r * row.candidate_stride].*field);
  }
  if (largest == kMinusInfinity) return kMinusInfinity;
  double sum = 0.0;
  for (int32_t r = 0; r < row.ranks; ++r) {
    sum += std::exp(row.candidates[r * row.candidate_stride].*field - largest);
  }
  return largest + std::log(sum);
}

/// False when some rank saw a NaN or +inf, or when no id is allowed.
QS_HOST_DEVICE inline bool MergeRanks(const GatheredRow& row, Merged& out) {
  for (int32_t r = 0; r < row.ranks; ++r) {
    const Candidate& candidate = row.candidates[r * row.candidate_stride];
    if (candidate.finite == 0) return false;
    if (candidate.best_id < 0) continue;
    // Shards ascend by id, so a strict comparison leaves ties with the smallest id.
    if (out.best_id < 0 || candidate.best_logit > out.best_logit) {
      out.best_id = candidate.best_id;
      out.best_logit = candidate.best_logit;
    }
    if (candidate.sampled_id >= 0 && (out.sampled_id < 0 || candidate.sampled_score > out.sampled_score)) {
      out.sampled_id = candidate.sampled_id;
      out.sampled_logit = candidate.sampled_logit;
      out.sampled_score = candidate.sampled_score;
    }
  }
  out.log_sum_exp = MergeLogSumExp(row, &Candidate::log_sum_exp);
  out.tempered_log_sum_exp = MergeLogSumExp(row, &Candidate::tempered_log_sum_exp);
  for (int32_t r = 0; r < row.ranks; ++r) {
    const Candidate& candidate = row.candidates[r * row.candidate_stride];
    const double weight = std::exp(candidate.log_sum_exp - out.log_sum_exp);
    if (weight > 0.0) out.mean_logit += weight * candidate.mean_logit;
  }
  return out.best_id >= 0 && std::isfinite(out.log_sum_exp);
}

/// The kTopLogitsMax largest of all ranks' lists, descending, ties: smallest id. Returns how many there are.
QS_HOST_DEVICE inline int32_t MergeTopLists(const GatheredRow& row, TopLogit* merged) {
  int32_t next[kRanksMax] = {};
  int32_t count = 0;
  for (; count < kTopLogitsMax; ++count) {
    int32_t from = -1;
    for (int32_t r = 0; r < row.ranks; ++r) {
      if (next[r] >= row.top_count) continue;
      const TopLogit& entry = row.top[r * row.top_stride + next[r]];
      if (entry.id < 0) continue;
      if (from < 0 || entry.logit > row.top[from * row.top_stride + next[from]].logit) from = r;
    }
    if (from < 0) break;
    merged[count] = row.top[from * row.top_stride + next[from]];
    ++next[from];
  }
  return count;
}

/// How many of the `count` descending logits top-k leaves: those that are not below the k-th.
QS_HOST_DEVICE inline int32_t KeepTopK(const TopLogit* top, int32_t count, int32_t k) {
  if (k <= 0 || k >= count) return count;
  int32_t kept = k;
  while (kept < count && top[kept].logit == top[k - 1].logit) ++kept;
  return kept;
}

/// How many of the `count` descending logits top-p leaves. `log_total`: ln of what the probabilities are relative to.
QS_HOST_DEVICE inline int32_t KeepTopP(const TopLogit* top, int32_t count, double temperature, double p,
                                       double log_total) {
  double before = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    if (before > p) return i;
    before += std::exp(top[i].logit / temperature - log_total);
  }
  return count;
}

QS_HOST_DEVICE inline double LogSumExp(const TopLogit* top, int32_t count, double temperature) {
  const double largest = top[0].logit / temperature;
  double sum = 0.0;
  for (int32_t i = 0; i < count; ++i) sum += std::exp(top[i].logit / temperature - largest);
  return largest + std::log(sum);
}

/// Draws among the ids that top-k and top-p leave: overwrites the sampled fields and tempered_log_sum_exp.
QS_HOST_DEVICE inline void DrawFromNucleus(const GatheredRow& row, const SamplingRule& rule, const DrawPlace& place,
                                           Merged& merged) {
  TopLogit top[kTopLogitsMax];
  int32_t count = MergeTopLists(row, top);
  if (count == 0) {
    merged.sampled_id = -1;
    return;
  }
  const double temperature = rule.temperature;
  count = KeepTopK(top, count, rule.top_k);
  if (rule.top_p < 1.0f) {
    const double log_total = rule.top_k > 0 ? LogSumExp(top, count, temperature) : merged.tempered_log_sum_exp;
    count = KeepTopP(top, count, temperature, rule.top_p, log_total);
  }
  merged.sampled_id = -1;
  for (int32_t i = 0; i < count; ++i) {
    const double score = top[i].logit / temperature + GumbelDraw(place, static_cast<uint32_t>(top[i].id));
    const bool first = merged.sampled_id < 0 || score > merged.sampled_score;
    if (first || (score == merged.sampled_score && top[i].id < merged.sampled_id)) {
      merged.sampled_id = top[i].id;
      merged.sampled_logit = top[i].logit;
      merged.sampled_score = score;
    }
  }
  merged.tempered_log_sum_exp = LogSumExp(top, count, temperature);
}

}  // namespace merging

/// Merges the ranks' records of one row in rank order; ties go to the smallest id. The confidence is the raw softmax
/// probability when the row is greedy or `raw_confidence` is set (decoding.md §0.3), else the probability after
/// temperature, top-k and top-p, renormalised over the ids that are left. Pure: equal records give equal bits.
///
/// With top-k or top-p the lists must be kTopLogitsMax long. Top-k (at most 256) is then exact, except that of more
/// than 256 ids tied with the k-th only the 256 smallest survive. Top-p is exact when the 256 most likely ids hold the
/// mass p or more; when they do not, the nucleus is those 256 ids.
QS_HOST_DEVICE inline RowChoice MergeCandidates(const GatheredRow& row, const SamplingRule& rule, bool raw_confidence,
                                                const DrawPlace& place) {
  RowChoice choice;
  merging::Merged merged;
  if (!merging::MergeRanks(row, merged)) return choice;
  const bool greedy = !(rule.temperature > 0.0f);
  if (NeedsTopLogits(rule)) merging::DrawFromNucleus(row, rule, place, merged);
  choice.token = greedy ? merged.best_id : merged.sampled_id;
  const double logit = greedy ? merged.best_logit : merged.sampled_logit;
  const double log_probability = logit - merged.log_sum_exp;
  choice.log_probability = static_cast<float>(log_probability);
  const double log_confidence =
      greedy || raw_confidence ? log_probability : logit / rule.temperature - merged.tempered_log_sum_exp;
  // Rounding of a sure token's sums must not make a probability exceed 1.
  choice.confidence = static_cast<float>(std::exp(std::fmin(log_confidence, 0.0)));
  choice.entropy = static_cast<float>(merged.log_sum_exp - merged.mean_logit);
  choice.finite = choice.token >= 0;
  return choice;
}

}  // namespace quicksilver
