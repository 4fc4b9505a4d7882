#pragma once

#include <cstdint>

#include "kernels/candidate.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// Most ranks whose records can be merged.
inline constexpr int32_t kRanksMax = 64;

/// How a token is drawn from a row's logits z: z / T, then top-k (ties with the k-th survive), then top-p (the token
/// that crosses p is kept), then the arg-max of z / T + GumbelDraw over what is left.
struct SamplingRule {
  float temperature = 0.0f;  ///< 0 is greedy: top_p and top_k then have no effect.
  float top_p = 1.0f;        ///< 1 is off.
  int32_t top_k = 0;         ///< 0 is off, else at most kTopLogitsMax.
  uint64_t seed = 0;
  uint32_t choice = 0;
};

/// True when a draw needs the ranks' top lists besides their candidates.
inline bool NeedsTopLogits(const SamplingRule& rule) {
  return rule.temperature > 0.0f && (rule.top_k > 0 || rule.top_p < 1.0f);
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
  float confidence = 0.0f;       ///< Probability of `token`: raw or processed, see MergeCandidates().
  float log_probability = 0.0f;  ///< Natural log of its raw probability (before temperature, top-k and top-p).
  float entropy = 0.0f;          ///< Of the raw distribution, in nats.
  bool finite = false;
};

/// Merges the ranks' records of one row in rank order; ties go to the smallest id. The confidence is the raw softmax
/// probability when the row is greedy or `raw_confidence` is set (decoding.md §0.3), else the probability after
/// temperature, top-k and top-p, renormalised over the ids that are left. Pure: equal records give equal bits.
///
/// With top-k or top-p the lists must be kTopLogitsMax long. Top-k (at most 256) is then exact, except that of more
/// than 256 ids tied with the k-th only the 256 smallest survive. Top-p is exact when the 256 most likely ids hold the
/// mass p or more; when they do not, the nucleus is those 256 ids.
RowChoice MergeCandidates(const GatheredRow& row, const SamplingRule& rule, bool raw_confidence,
                          const DrawPlace& place);

}  // namespace quicksilver
