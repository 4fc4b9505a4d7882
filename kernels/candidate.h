#pragma once

#include <cstdint>

#include "common/philox.h"

namespace quicksilver {

/// Bound of top-k, and of the nucleus that top-p looks at.
inline constexpr int32_t kTopLogitsMax = 256;

/// The ids whose logits this rank holds, and the ids that no row may choose.
struct VocabularyShard {
  int32_t first_id = 0;    ///< Row 0 of this rank's LM head.
  int32_t vocabulary = 0;  ///< Real ids; rows at or above it are padding and count as -inf everywhere.
  int32_t mask_id =
      -1;  ///< Never chosen (nor among the top logits), but its mass stays in log_sum_exp (decoding.md §0.5).
  float soft_cap = 0.0f;  ///< c: z = c tanh(z / c) before anything else (models.md §8.4). 0: none.
};

/// What is asked of one row.
struct CandidateRequest {
  /// In `hidden`; -1: padding, as for a shard without an allowed id (best_id is -1, sums are -inf, finite is 1).
  int32_t row = 0;
  int32_t guide_row = -1;  ///< Row of the unconditional pass, or -1. Then z = u + (guidance + 1) (c - u).
  float guidance = 0.0f;
  float temperature = 0.0f;    ///< 0: greedy, no sample is drawn (sampled_* repeat best_*).
  int32_t suppressed_id = -1;  ///< Counts as -inf everywhere (LLaDA's logits_eos_inf), or -1.
  DrawPlace place;             ///< Where a sample is drawn.
  /// Into the batch's biases: a run of ascending ids, each once, added to z after guidance. -inf forbids: the id counts
  /// as -inf everywhere, whatever its logit is. Ids may be of other shards.
  int32_t first_bias = 0;
  int32_t bias_count = 0;
  int32_t asked_id = -1;      ///< Its z is wanted, too, or -1.
  int32_t history_slot = -1;  ///< Where this row's z is kept for the next step, or -1.
  int32_t history_valid = 0;  ///< 1: the slot holds the z of the step before.
};

/// Added to the logit of one id.
struct TokenBias {
  int32_t id = 0;
  float bias = 0.0f;
};

/// The requests of one Ops::Candidates, and what they point into. All device memory.
struct CandidateBatch {
  const CandidateRequest* requests = nullptr;  ///< [count]
  int32_t count = 0;
  const TokenBias* biases = nullptr;  ///< What first_bias is an index into; null: no request has biases.
  /// [slots, V/tp] what history_slot is an index into; null: no request has a slot. No two requests share one.
  float* history = nullptr;
};

/// Most alternatives that are reported of a row.
inline constexpr int32_t kTopReportedMax = 20;

/// What one rank says about one row. z: its logits in float; all ids are global. Merging is in kernels/policy.
struct Candidate {
  int32_t best_id = -1;  ///< Arg-max of z, ties: smallest id; -1 when the shard has no allowed id.
  float best_logit = 0.0f;
  float second_logit = 0.0f;          ///< Largest z of another allowed id; -inf when there is none.
  double log_sum_exp = 0.0;           ///< ln sum e^z. Double: 1 - p of a sure token is read from its difference to z.
  double mean_logit = 0.0;            ///< sum z e^(z - log_sum_exp): entropy = log_sum_exp - mean_logit.
  int32_t sampled_id = -1;            ///< Arg-max of z / T + Gumbel(place, id), ties: smallest id.
  float sampled_logit = 0.0f;         ///< Its z.
  double tempered_log_sum_exp = 0.0;  ///< ln sum e^(z / T); equals log_sum_exp when T = 0.
  double tempered_mean_logit = 0.0;   ///< sum z e^(z / T - tempered_log_sum_exp); equals mean_logit when T = 0.
  double sampled_score = 0.0;         ///< z / T + Gumbel, for the merge.
  /// sum z' e^(z - log_sum_exp), z' the logits in the row's history slot: KL = mean_logit - log_sum_exp - mean_previous
  /// + log_sum_exp of the step before. An id without mass adds nothing. 0 without history.
  double mean_previous = 0.0;
  float asked_logit = 0.0f;  ///< z of asked_id; -inf when it is not in this shard.
  int32_t finite = 1;        ///< 0 when some z of a real id is NaN or +inf: the other fields mean nothing.
};

struct TopLogit {
  float logit = 0.0f;
  int32_t id = -1;
};

}  // namespace quicksilver
