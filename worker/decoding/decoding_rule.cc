#include "worker/decoding/decoding_rule.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

constexpr int32_t kDefaultBlock = 32;
constexpr float kDefaultThreshold = 0.9f;
constexpr float kGuidanceMax = 100.0f;

template <typename T>
absl::Status Refuse(const char* field, T value, const std::string& bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " (", value, ") must be ", bound));
}

int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Blocks of one length that waste as few positions as possible, rather than full blocks and a wasteful last one.
int32_t EvenBlock(int32_t tokens_max, int32_t block_max) { return CeilDiv(tokens_max, CeilDiv(tokens_max, block_max)); }

absl::Status ResolveAbsoluteGrid(const ModelSpec& spec, const DecodingParams& choice, DecodingRule& rule) {
  CHECK(spec.block_length > 0);
  rule.block_length = spec.block_length;
  if (choice.block_length.has_value() && *choice.block_length != spec.block_length) {
    return Refuse("decoding.block_length", *choice.block_length,
                  absl::StrCat(spec.block_length, ": a block-causal model fixes it"));
  }
  const int64_t steps = choice.steps.value_or(rule.block_length);
  if (steps < 1 || steps > rule.block_length) {
    return Refuse("decoding.steps", steps, absl::StrCat("in [1, ", rule.block_length, "], the model's block length"));
  }
  rule.steps = static_cast<int32_t>(steps);
  if (rule.guidance_scale > 0.0f) {
    return Refuse("decoding.guidance_scale", rule.guidance_scale, "0: guidance needs a bidirectional model");
  }
  if (choice.suppress_eos) return Refuse("decoding.suppress_eos", "true", "false: it needs a bidirectional model");
  if (choice.distrust_eos) return Refuse("decoding.distrust_eos", "true", "false: it needs a bidirectional model");
  return absl::OkStatus();
}

absl::Status ResolveGridAfterPrompt(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max,
                                    DecodingRule& rule) {
  const int32_t block_max = spec.block_length > 0 ? spec.block_length : kDefaultBlock;
  const int64_t block = choice.block_length.value_or(EvenBlock(tokens_max, block_max));
  if (block < 1 || block > spec.positions_max) {
    return Refuse("decoding.block_length", block, absl::StrCat("in [1, ", spec.positions_max, "]"));
  }
  // A block longer than the answer would only add positions that are cut off.
  rule.block_length = static_cast<int32_t>(std::min<int64_t>(block, tokens_max));
  const int32_t blocks = CeilDiv(tokens_max, rule.block_length);
  const int64_t answer = int64_t{blocks} * rule.block_length;
  const int64_t steps = choice.steps.value_or(answer);
  if (steps < blocks) {
    return Refuse("decoding.steps", steps, absl::StrCat("at least ", blocks, ", the number of blocks"));
  }
  // A step without a position to write changes nothing.
  rule.steps = static_cast<int32_t>(std::min(steps, answer));
  rule.distrust_eos = choice.distrust_eos;
  if (choice.suppress_eos) {
    if (spec.stop_ids.empty()) return Refuse("decoding.suppress_eos", "true", "false: the model has no stop token");
    rule.suppressed_id = spec.stop_ids.front();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DecodingRule> ResolveDecoding(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max) {
  CHECK(tokens_max > 0);
  const bool absolute = spec.grid == BlockGrid::kAbsolute;
  DecodingRule rule;
  rule.policy = choice.policy.value_or(absolute ? Policy::kDynamic : Policy::kStatic);
  rule.threshold = choice.threshold.value_or(kDefaultThreshold);
  if (!(rule.threshold >= 0.0f && rule.threshold <= 1.0f)) {
    return Refuse("decoding.threshold", rule.threshold, "in [0, 1]");
  }
  rule.remasking = choice.remasking.value_or(Remasking::kLowConfidence);
  if (rule.remasking == Remasking::kRandom && rule.policy != Policy::kStatic) {
    return Refuse("decoding.remasking", "random", "low_confidence unless the policy is static");
  }
  rule.guidance_scale = choice.guidance_scale.value_or(0.0f);
  if (!(rule.guidance_scale >= 0.0f && rule.guidance_scale <= kGuidanceMax)) {
    return Refuse("decoding.guidance_scale", rule.guidance_scale, absl::StrCat("in [0, ", kGuidanceMax, "]"));
  }
  rule.raw_confidence = spec.family == "llada";
  RETURN_IF_ERROR(absolute ? ResolveAbsoluteGrid(spec, choice, rule)
                           : ResolveGridAfterPrompt(spec, choice, tokens_max, rule));
  return rule;
}

absl::Status CheckSampling(const SamplingRule& rule) {
  if (!(rule.temperature >= 0.0f && rule.temperature <= 2.0f)) {
    return Refuse("sampling.temperature", rule.temperature, "in [0, 2]");
  }
  if (!(rule.top_p > 0.0f && rule.top_p <= 1.0f)) return Refuse("sampling.top_p", rule.top_p, "in (0, 1]");
  if (rule.top_k < 0 || rule.top_k > kTopLogitsMax) {
    return Refuse("sampling.top_k", rule.top_k, absl::StrCat("in [0, ", kTopLogitsMax, "]"));
  }
  if (rule.choice >= 1u << 16) return Refuse("choice", rule.choice, "below 65536");
  return absl::OkStatus();
}

int32_t CanvasLength(BlockGrid grid, int32_t prompt, int32_t tokens_max, int32_t block_length, int32_t positions_max) {
  const int32_t length = grid == BlockGrid::kAbsolute ? CeilDiv(prompt + tokens_max, block_length) * block_length
                                                      : prompt + CeilDiv(tokens_max, block_length) * block_length;
  return std::max(prompt + tokens_max, std::min(length, positions_max));
}

}  // namespace quicksilver
