#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/policy/open_block.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// What a client asked for. Unset fields take the family's default.
struct DecodingParams {
  std::optional<Policy> policy;
  std::optional<int64_t> block_length;
  std::optional<int64_t> steps;
  std::optional<float> threshold;
  std::optional<Remasking> remasking;
  std::optional<float> guidance_scale;
  bool suppress_eos = false;
  bool distrust_eos = false;
};

/// How one sequence is decoded: everything is set and within bounds.
struct DecodingRule {
  Policy policy = Policy::kStatic;
  int32_t block_length = 0;  ///< B
  int32_t steps = 0;         ///< Of one block on the absolute grid, else of the whole answer. >= 1
  float threshold = 0.9f;
  Remasking remasking = Remasking::kLowConfidence;
  float guidance_scale = 0.0f;  ///< 0: no guide rows.
  TokenId suppressed_id = -1;   ///< LLaDA's logits_eos_inf.
  bool distrust_eos = false;    ///< LLaDA's confidence_eos_eot_inf: stop tokens rank last.
  bool raw_confidence = false;  ///< Confidence of the raw softmax even when a token was drawn with noise.
};

/// Resolves a choice for an answer of `tokens_max` tokens. Defaults, absolute grid (SDAR): dynamic, threshold 0.9,
/// steps = block length. Defaults, grid after the prompt (LLaDA): static by low confidence, blocks of nearly equal
/// length of at most the model's default (32 when it has none), one token a step. InvalidArgument names the field as in
/// the client's contract, its value and the bound.
absl::StatusOr<DecodingRule> ResolveDecoding(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max);

/// InvalidArgument unless temperature is in [0, 2], top_p in (0, 1], top_k at most kTopLogitsMax and choice < 2^16.
absl::Status CheckSampling(const SamplingRule& rule);

/// Positions of prompt and answer together. The answer is rounded up to whole blocks (the block length counts from
/// position 0 or from the end of the prompt, as the grid says), but never past `positions_max`: the last block may then
/// be short.
int32_t CanvasLength(BlockGrid grid, int32_t prompt, int32_t tokens_max, int32_t block_length, int32_t positions_max);

}  // namespace quicksilver
