#include "worker/decoding/decoding_rule.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/decoding/decoding_fields.h"
#include "worker/decoding/profiles.h"

namespace quicksilver {
namespace {

constexpr int32_t kDefaultBlock = 32;
constexpr float kGuidanceMax = 100.0f;

template <typename T>
absl::Status Refuse(const char* field, T value, const std::string& bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " (", value, ") must be ", bound));
}

int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Blocks of one length that waste as few positions as possible, rather than full blocks and a wasteful last one.
int32_t EvenBlock(int32_t tokens_max, int32_t block_max) { return CeilDiv(tokens_max, CeilDiv(tokens_max, block_max)); }

absl::Status CheckNotBidirectional(const DecodingParams& choice) {
  if (choice.guidance_scale.value_or(0.0f) > 0.0f) {
    return Refuse("decoding.guidance_scale", *choice.guidance_scale, "0: guidance needs a bidirectional model");
  }
  if (choice.suppress_eos) return Refuse("decoding.suppress_eos", "true", "false: it needs a bidirectional model");
  if (choice.distrust_eos) return Refuse("decoding.distrust_eos", "true", "false: it needs a bidirectional model");
  if (choice.cache.value_or(Cache::kNone) != Cache::kNone) {
    return absl::InvalidArgumentError("decoding.cache must be unset or none: it needs a bidirectional model");
  }
  return absl::OkStatus();
}

// A block of a length that the model fixes, and steps of one block.
absl::Status ResolveFixedBlock(const ModelSpec& spec, const DecodingParams& choice, DecodingRule& rule) {
  CHECK(spec.block_length > 0);
  rule.block_length = spec.block_length;
  if (choice.block_length.has_value() && *choice.block_length != spec.block_length) {
    return Refuse("decoding.block_length", *choice.block_length,
                  absl::StrCat(spec.block_length, spec.grid == BlockGrid::kAbsolute ? ": a block-causal model fixes it"
                                                                                    : ": the canvas has that length"));
  }
  RETURN_IF_ERROR(CheckNotBidirectional(choice));
  const bool renoise = rule.policy == Policy::kRenoise;
  const int32_t steps_max = renoise ? kRenoiseStepsMax : rule.block_length;
  const int64_t steps = choice.steps.value_or(renoise ? kRenoiseSteps : rule.block_length);
  if (steps < 1 || steps > steps_max) {
    return Refuse("decoding.steps", steps,
                  absl::StrCat("in [1, ", steps_max, "]", renoise ? "" : ", the model's block length"));
  }
  rule.steps = static_cast<int32_t>(steps);
  return absl::OkStatus();
}

int32_t DefaultBlock(const ModelSpec& spec, Policy policy, int32_t tokens_max) {
  // Dream knows no blocks.
  if (IsTimeGridPolicy(policy)) return tokens_max;
  if (policy == Policy::kVariableLength) return spec.block_length > 0 ? spec.block_length : kDefaultBlock;
  const int32_t block_max = policy == Policy::kWino    ? kWinoBlock
                            : policy == Policy::kKlass ? kKlassBlock
                            : spec.block_length > 0    ? spec.block_length
                                                       : kDefaultBlock;
  return EvenBlock(tokens_max, block_max);
}

absl::Status ResolveGridAfterPrompt(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max,
                                    DecodingRule& rule) {
  const int64_t block = choice.block_length.value_or(DefaultBlock(spec, rule.policy, tokens_max));
  if (block < 1 || block > spec.positions_max) {
    return Refuse("decoding.block_length", block, absl::StrCat("in [1, ", spec.positions_max, "]"));
  }
  // A block longer than the answer would only add positions that are cut off.
  rule.block_length = static_cast<int32_t>(std::min<int64_t>(block, tokens_max));
  const int32_t blocks = CeilDiv(tokens_max, rule.block_length);
  const int64_t answer = int64_t{blocks} * rule.block_length;
  const int64_t steps = choice.steps.value_or(rule.policy == Policy::kQuotaThreshold ? (answer + 1) / 2 : answer);
  if (steps < blocks) {
    return Refuse("decoding.steps", steps, absl::StrCat("at least ", blocks, ", the number of blocks"));
  }
  // A step without a position to write changes nothing, but where the schedule is one of times.
  const bool times = rule.policy == Policy::kRemdm || IsTimeGridPolicy(rule.policy);
  const int64_t steps_max = times ? kTimesMax : answer;
  rule.steps = static_cast<int32_t>(std::min(steps, steps_max));
  if (rule.guidance_scale > 0.0f && spec.shift) {
    return Refuse("decoding.guidance_scale", rule.guidance_scale, "0: guidance needs a model of the LLaDA family");
  }
  rule.distrust_eos = choice.distrust_eos;
  if (choice.suppress_eos) {
    if (spec.eos_id < 0) return Refuse("decoding.suppress_eos", "true", "false: the model has no stop token");
    rule.suppressed_id = spec.eos_id;
  }
  if (rule.cache == Cache::kVicinity && spec.shift) {
    return absl::InvalidArgumentError("decoding.cache (vicinity) must be none, prefix or dual: the model shifts rows");
  }
  if (choice.initial_length.value_or(1) > tokens_max) {
    return Refuse("decoding.initial_length", *choice.initial_length, absl::StrCat("in [1, ", tokens_max, "]"));
  }
  return absl::OkStatus();
}

// LLaDA2 caps the steps of a block so that each may write commits_min tokens.
absl::Status ResolveCommits(const DecodingParams& choice, int32_t tokens_max, DecodingRule& rule) {
  if (rule.commits_min > rule.block_length) {
    return Refuse("decoding.commits_min", rule.commits_min, absl::StrCat("in [1, ", rule.block_length, "]"));
  }
  if (rule.policy == Policy::kDynamic && choice.commits_min.has_value()) {
    rule.steps = std::min(rule.steps, std::max(1, tokens_max / rule.commits_min));
  }
  if (rule.policy == Policy::kSubBlock) {
    if (!choice.sub_block_length.has_value())
      rule.sub_block_length = std::min(rule.sub_block_length, rule.block_length);
    if (rule.sub_block_length > rule.block_length || rule.block_length % rule.sub_block_length != 0) {
      return Refuse("decoding.sub_block_length", rule.sub_block_length,
                    absl::StrCat("a divisor of the block length, ", rule.block_length));
    }
  }
  return absl::OkStatus();
}

// What a policy alone says.
void TakeValues(const DecodingParams& choice, DecodingRule& rule) {
  const auto take = [](const auto& from, auto& to) {
    if (from.has_value()) to = static_cast<std::decay_t<decltype(to)>>(*from);
  };
  take(choice.threshold, rule.threshold);
  take(choice.remasking, rule.remasking);
  take(choice.confidence, rule.measure);
  take(choice.guidance_scale, rule.guidance_scale);
  take(choice.raw_confidence, rule.raw_confidence);
  take(choice.factor, rule.factor);
  take(choice.entropy_bound, rule.entropy_bound);
  take(choice.low_threshold, rule.low_threshold);
  take(choice.edit, rule.edit);
  take(choice.edit_threshold, rule.edit_threshold);
  take(choice.post_steps_max, rule.post_steps_max);
  take(choice.commits_min, rule.commits_min);
  take(choice.cache, rule.cache);
  take(choice.vicinity_before, rule.vicinity_before);
  take(choice.vicinity_after, rule.vicinity_after);
  take(choice.vicinity_warmup, rule.vicinity_warmup);
  take(choice.credit_alpha, rule.credit_alpha);
  take(choice.credit_gamma, rule.credit_gamma);
  take(choice.credit_beta, rule.credit_beta);
  take(choice.kl_threshold, rule.kl_threshold);
  take(choice.verify_threshold, rule.verify_threshold);
  take(choice.remasking_schedule, rule.remasking_schedule);
  take(choice.remasking_eta, rule.remasking_eta);
  take(choice.remasking_on, rule.remasking_on);
  take(choice.remasking_off, rule.remasking_off);
  take(choice.remasking_alpha, rule.remasking_alpha);
  take(choice.block_add_threshold, rule.block_add_threshold);
  take(choice.initial_length, rule.initial_length);
  take(choice.expansion, rule.expansion);
  take(choice.eos_threshold, rule.eos_threshold);
  take(choice.expand_eos_threshold, rule.expand_eos_threshold);
  take(choice.eos_window, rule.eos_window);
  take(choice.sub_block_length, rule.sub_block_length);
  take(choice.confidence_temperature, rule.confidence_temperature);
  take(choice.stability_steps, rule.stability_steps);
  take(choice.temperature_min, rule.temperature_min);
  take(choice.temperature_max, rule.temperature_max);
}

absl::StatusOr<Policy> ChoosePolicy(const ModelSpec& spec, const DecodingParams& choice) {
  const Policy policy = choice.policy.value_or(DefaultPolicy(spec, choice.profile));
  const std::vector<Policy> allowed = AllowedPolicies(spec);
  if (std::find(allowed.begin(), allowed.end(), policy) != allowed.end()) return policy;
  std::string names;
  for (const Policy one : allowed) absl::StrAppend(&names, names.empty() ? "" : ", ", NameOf(one));
  return absl::InvalidArgumentError(absl::StrCat("decoding.policy (", NameOf(policy), ") must be one that the family ",
                                                 spec.family, " can run: ", names));
}

}  // namespace

absl::StatusOr<DecodingRule> ResolveDecoding(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max) {
  CHECK(tokens_max > 0);
  DecodingRule rule;
  ASSIGN_OR_RETURN(rule.policy, ChoosePolicy(spec, choice));
  RETURN_IF_ERROR(CheckFields(rule.policy, choice));
  const DecodingParams resolved = WithDefaults(spec, rule.policy, choice);
  TakeValues(resolved, rule);
  if (rule.guidance_scale > kGuidanceMax || !(rule.guidance_scale >= 0.0f)) {
    return Refuse("decoding.guidance_scale", rule.guidance_scale, absl::StrCat("in [0, ", kGuidanceMax, "]"));
  }
  if (rule.temperature_min > rule.temperature_max) {
    return Refuse("decoding.temperature_min", rule.temperature_min,
                  absl::StrCat("at most temperature_max, ", rule.temperature_max));
  }
  if (rule.remasking_off > rule.remasking_on) {
    return Refuse("decoding.remasking_off", rule.remasking_off,
                  absl::StrCat("at most remasking_on, ", rule.remasking_on));
  }
  rule.finish_blocks = choice.finish_blocks;
  RETURN_IF_ERROR(spec.grid == BlockGrid::kAfterPrompt ? ResolveGridAfterPrompt(spec, choice, tokens_max, rule)
                                                       : ResolveFixedBlock(spec, choice, rule));
  RETURN_IF_ERROR(ResolveCommits(choice, tokens_max, rule));
  if (rule.policy == Policy::kTopkMargin) rule.measure = Measure::kMargin;
  if (rule.policy == Policy::kEntropy) rule.measure = Measure::kEntropy;
  rule.initial_length = std::min(rule.initial_length, tokens_max);
  rule.mask_id = spec.mask_id;
  rule.delete_id = spec.delete_id;
  rule.insert_id = spec.insert_id;
  rule.vocabulary = static_cast<int32_t>(spec.tokens);
  rule.eos_ids = spec.stop_ids;
  rule.eos_id = spec.eos_id;
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
