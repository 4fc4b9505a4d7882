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

/// What the ranks say about one row together. When not `finite` the other fields mean nothing. "The distribution" is
/// the one that MergeCandidates() was asked for: the raw softmax of z, or what sampling draws from.
struct RowChoice {
  TokenId token = -1;
  float confidence = 0.0f;            ///< Probability of `token` in the distribution.
  float log_probability = 0.0f;       ///< Natural log of its raw probability (before temperature, top-k and top-p).
  float margin = 0.0f;                ///< Probability of the distribution's best token minus the second's.
  float entropy = 0.0f;               ///< Of the distribution, in nats, at least 0.
  float asked_probability = 0.0f;     ///< Raw, of CandidateRequest::asked_id.
  double log_sum_exp = 0.0;           ///< Of the raw logits, all ranks together.
  double mean_previous = 0.0;         ///< Candidate::mean_previous of all ranks together.
  TokenId best = -1;                  ///< The most likely token, also when another one was drawn.
  float best_log_probability = 0.0f;  ///< Raw.
  bool finite = false;
};

namespace merging {

inline constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// What is known of a distribution softmax(z / temperature) over some ids.
struct Distribution {
  double temperature = 1.0;
  double log_sum_exp = kMinusInfinity;   ///< ln sum e^(z / temperature)
  double mean_logit = 0.0;               ///< Mean z.
  double best_logit = kMinusInfinity;    ///< Largest z of an id that may be chosen, …
  double second_logit = kMinusInfinity;  ///< … and that of another one.
};

/// What the ranks' candidates say together.
struct Merged {
  int32_t best_id = -1;
  int32_t sampled_id = -1;
  double sampled_logit = kMinusInfinity;
  double sampled_score = kMinusInfinity;
  Distribution raw;
  Distribution processed;
  double asked_logit = kMinusInfinity;
  double mean_previous = 0.0;
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

/// The mean of the ranks' means, each with the weight of its share of `total`, in rank order.
QS_HOST_DEVICE inline double MergeMeans(const GatheredRow& row, double Candidate::*log_sum_exp, double total,
                                        double Candidate::*mean) {
  double merged = 0.0;
  for (int32_t r = 0; r < row.ranks; ++r) {
    const Candidate& candidate = row.candidates[r * row.candidate_stride];
    const double weight = std::exp(candidate.*log_sum_exp - total);
    if (weight > 0.0) merged += weight * (candidate.*mean);
  }
  return merged;
}

/// Takes one rank's best, second and sampled ids in. Shards ascend by id, so a strict comparison leaves ties with the
/// smallest id.
QS_HOST_DEVICE inline void MergeLeaders(const Candidate& candidate, Merged& out) {
  out.asked_logit = std::fmax(out.asked_logit, candidate.asked_logit);
  if (candidate.best_id < 0) return;
  if (out.best_id < 0 || candidate.best_logit > out.raw.best_logit) {
    out.raw.second_logit = std::fmax(out.raw.best_logit, candidate.second_logit);
    out.raw.best_logit = candidate.best_logit;
    out.best_id = candidate.best_id;
  } else {
    out.raw.second_logit = std::fmax(out.raw.second_logit, candidate.best_logit);
  }
  if (candidate.sampled_id >= 0 && (out.sampled_id < 0 || candidate.sampled_score > out.sampled_score)) {
    out.sampled_id = candidate.sampled_id;
    out.sampled_logit = candidate.sampled_logit;
    out.sampled_score = candidate.sampled_score;
  }
}

/// False when some rank saw a NaN or +inf, or when no id is allowed.
QS_HOST_DEVICE inline bool MergeRanks(const GatheredRow& row, const SamplingRule& rule, Merged& out) {
  for (int32_t r = 0; r < row.ranks; ++r) {
    const Candidate& candidate = row.candidates[r * row.candidate_stride];
    if (candidate.finite == 0) return false;
    MergeLeaders(candidate, out);
  }
  Distribution& raw = out.raw;
  raw.log_sum_exp = MergeLogSumExp(row, &Candidate::log_sum_exp);
  if (out.best_id < 0 || !std::isfinite(raw.log_sum_exp)) return false;
  raw.mean_logit = MergeMeans(row, &Candidate::log_sum_exp, raw.log_sum_exp, &Candidate::mean_logit);
  out.mean_previous = MergeMeans(row, &Candidate::log_sum_exp, raw.log_sum_exp, &Candidate::mean_previous);
  out.processed = raw;
  if (!(rule.temperature > 0.0f)) return true;
  Distribution& tempered = out.processed;
  tempered.temperature = rule.temperature;
  tempered.log_sum_exp = MergeLogSumExp(row, &Candidate::tempered_log_sum_exp);
  tempered.mean_logit =
      MergeMeans(row, &Candidate::tempered_log_sum_exp, tempered.log_sum_exp, &Candidate::tempered_mean_logit);
  return true;
}

/// The `count_max` largest of all ranks' lists, descending, ties: smallest id. Returns how many there are.
QS_HOST_DEVICE inline int32_t MergeTopLists(const GatheredRow& row, int32_t count_max, TopLogit* merged) {
  int32_t next[kRanksMax] = {};
  int32_t count = 0;
  for (; count < count_max; ++count) {
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

/// How many of the `count` descending logits top-k and top-p leave.
QS_HOST_DEVICE inline int32_t KeepBoth(const TopLogit* top, int32_t count, const SamplingRule& rule,
                                       const Distribution& whole) {
  const double temperature = whole.temperature;
  const int32_t after_k = KeepTopK(top, count, rule.top_k);
  if (!(rule.top_p < 1.0f)) return after_k;
  if (rule.top_p_first) {
    return KeepTopK(top, KeepTopP(top, count, temperature, rule.top_p, whole.log_sum_exp), rule.top_k);
  }
  const double log_total = rule.top_k > 0 ? LogSumExp(top, after_k, temperature) : whole.log_sum_exp;
  return KeepTopP(top, after_k, temperature, rule.top_p, log_total);
}

/// The arg-max of z / T + Gumbel over `count` logits, ties: smallest id: overwrites the sampled fields.
QS_HOST_DEVICE inline void Draw(const TopLogit* top, int32_t count, const DrawPlace& place, Merged& merged) {
  merged.sampled_id = -1;
  for (int32_t i = 0; i < count; ++i) {
    const double score =
        top[i].logit / merged.processed.temperature + GumbelDraw(place, static_cast<uint32_t>(top[i].id));
    const bool first = merged.sampled_id < 0 || score > merged.sampled_score;
    if (first || (score == merged.sampled_score && top[i].id < merged.sampled_id)) {
      merged.sampled_id = top[i].id;
      merged.sampled_logit = top[i].logit;
      merged.sampled_score = score;
    }
  }
}

/// Makes the processed distribution that of the ids which top-k and top-p leave, and draws among them.
QS_HOST_DEVICE inline void Truncate(const GatheredRow& row, const SamplingRule& rule, const DrawPlace& place,
                                    Merged& merged) {
  TopLogit top[kTopLogitsMax];
  int32_t count = MergeTopLists(row, kTopLogitsMax, top);
  if (count == 0) {
    merged.sampled_id = -1;
    return;
  }
  Distribution& left = merged.processed;
  count = KeepBoth(top, count, rule, left);
  if (rule.temperature > 0.0f) Draw(top, count, place, merged);
  left.log_sum_exp = LogSumExp(top, count, left.temperature);
  left.second_logit = count > 1 ? double{top[1].logit} : kMinusInfinity;
  left.mean_logit = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    const double weight = std::exp(top[i].logit / left.temperature - left.log_sum_exp);
    if (weight > 0.0) left.mean_logit += weight * top[i].logit;
  }
}

/// Rounding of a sure token's sums must not make a probability exceed 1.
QS_HOST_DEVICE inline double ProbabilityOf(const Distribution& of, double logit) {
  return std::exp(std::fmin(logit / of.temperature - of.log_sum_exp, 0.0));
}

}  // namespace merging

/// Merges the ranks' records of one row in rank order; ties go to the smallest id. The confidence, the margin and the
/// entropy are of the raw softmax when `raw_confidence` is set or the row is greedy and not truncated (decoding.md
/// §0.3), else of what is left after temperature, top-k and top-p, renormalised. Pure: equal records give equal bits.
///
/// With top-k or top-p the lists must be kTopLogitsMax long. Top-k (at most 256) is then exact, except that of more
/// than 256 ids tied with the k-th only the 256 smallest survive. Top-p is exact when the 256 most likely ids hold the
/// mass p or more; when they do not, the nucleus is those 256 ids.
QS_HOST_DEVICE inline RowChoice MergeCandidates(const GatheredRow& row, const SamplingRule& rule, bool raw_confidence,
                                                const DrawPlace& place) {
  RowChoice choice;
  merging::Merged merged;
  if (!merging::MergeRanks(row, rule, merged)) return choice;
  if (NeedsTopLogits(rule)) merging::Truncate(row, rule, place, merged);
  const bool greedy = !(rule.temperature > 0.0f);
  choice.token = greedy ? merged.best_id : merged.sampled_id;
  const double logit = greedy ? merged.raw.best_logit : merged.sampled_logit;
  const merging::Distribution& asked = raw_confidence ? merged.raw : merged.processed;
  choice.log_probability = static_cast<float>(logit - merged.raw.log_sum_exp);
  choice.confidence = static_cast<float>(merging::ProbabilityOf(asked, logit));
  choice.margin = static_cast<float>(merging::ProbabilityOf(asked, asked.best_logit) -
                                     merging::ProbabilityOf(asked, asked.second_logit));
  choice.entropy = static_cast<float>(std::fmax(asked.log_sum_exp - asked.mean_logit / asked.temperature, 0.0));
  choice.asked_probability = static_cast<float>(merging::ProbabilityOf(merged.raw, merged.asked_logit));
  choice.log_sum_exp = merged.raw.log_sum_exp;
  choice.mean_previous = merged.mean_previous;
  choice.best = merged.best_id;
  choice.best_log_probability = static_cast<float>(merged.raw.best_logit - merged.raw.log_sum_exp);
  choice.finite = choice.token >= 0;
  return choice;
}

/// The count_max (at most kTopReportedMax) most likely ids of a row, descending, ties: smallest id, each with the
/// natural log of its raw probability; what is missing of kTopReportedMax is {-inf, -1}. log_sum_exp: RowChoice's.
QS_HOST_DEVICE inline void ReportTops(const GatheredRow& row, int32_t count_max, double log_sum_exp, TopLogit* tops) {
  const int32_t count = merging::MergeTopLists(row, count_max, tops);
  for (int32_t i = 0; i < kTopReportedMax; ++i) {
    if (i < count) {
      tops[i].logit = static_cast<float>(tops[i].logit - log_sum_exp);
    } else {
      tops[i] = {-std::numeric_limits<float>::infinity(), -1};
    }
  }
}

}  // namespace quicksilver
