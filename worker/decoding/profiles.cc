#include "worker/decoding/profiles.h"

#include <algorithm>
#include <array>

#include "worker/decoding/decoding_fields.h"

namespace quicksilver {
namespace {

bool IsLlada(const ModelSpec& spec) { return spec.grid == BlockGrid::kAfterPrompt && !spec.shift; }

/// A family's named setting.
DecodingParams SettingOf(const ModelSpec& spec, Profile profile) {
  const bool quality = profile == Profile::kQuality, fast = profile == Profile::kFast;
  DecodingParams setting;
  if (spec.grid == BlockGrid::kCanvas) {
    setting.policy = Policy::kRenoise;
    setting.entropy_bound = quality ? 0.05f : fast ? 0.2f : 0.1f;
  } else if (spec.grid == BlockGrid::kAbsolute && spec.block_length == 1) {
    setting.policy = Policy::kAutoregressive;
  } else if (spec.grid == BlockGrid::kAbsolute && spec.shift) {
    setting.policy = Policy::kSubBlock;
    setting.threshold = quality ? 0.95f : fast ? 0.8f : 0.9f;
  } else if (spec.grid == BlockGrid::kAbsolute) {
    setting.policy = quality && spec.family != "llada2" ? Policy::kStatic : Policy::kDynamic;
    if (setting.policy == Policy::kDynamic) setting.threshold = quality ? 0.95f : fast ? 0.8f : 0.9f;
  } else if (quality) {
    setting.policy = IsLlada(spec) ? Policy::kStatic : Policy::kEntropy;
  } else {
    setting.policy = Policy::kThreshold;
    setting.threshold = 0.9f;
    if (fast) setting.cache = Cache::kDual;
  }
  return setting;
}

/// LLaDA2.1's published quality and speed settings, which follow from the policy rather than from the family.
DecodingParams EditSetting(Profile profile) {
  DecodingParams setting;
  setting.threshold = profile == Profile::kFast ? 0.5f : 0.7f;
  setting.edit_threshold = profile == Profile::kFast ? 0.0f : 0.5f;
  return setting;
}

void SetHostDefaults(Policy policy, DecodingParams& defaults) {
  switch (policy) {
    case Policy::kTokenEdit:
      defaults.threshold = 0.95f;
      defaults.edit_threshold = 0.9f;
      defaults.post_steps_max = 16;
      break;
    case Policy::kInsertDelete:
      defaults.threshold = 0.5f;
      defaults.edit_threshold = 0.0f;
      defaults.post_steps_max = 16;
      break;
    case Policy::kWino:
      defaults.threshold = 0.6f;
      defaults.verify_threshold = 0.9f;
      break;
    case Policy::kVariableLength:
      defaults.low_threshold = 0.1f;
      defaults.initial_length = 64;
      defaults.expansion = 8;
      defaults.eos_threshold = 0.5f;
      defaults.expand_eos_threshold = 0.9f;
      defaults.eos_window = 32;
      break;
    case Policy::kMultiBlock:
      defaults.threshold = 0.5f;
      defaults.block_add_threshold = 0.1f;
      break;
    case Policy::kRenoise:
      defaults.threshold = 0.005f;
      defaults.entropy_bound = 0.1f;
      defaults.stability_steps = 1;
      defaults.temperature_min = 0.4f;
      defaults.temperature_max = 0.8f;
      break;
    default:
      break;
  }
}

DecodingParams DefaultsOf(const ModelSpec& spec, Policy policy, const DecodingParams& choice) {
  DecodingParams defaults;
  defaults.threshold = spec.family == "llada2" && policy == Policy::kDynamic ? 0.95f : 0.9f;
  // decoding.md §0.3: of the raw softmax, unless the reference draws with its processed one.
  defaults.raw_confidence = IsLlada(spec) || policy == Policy::kSubBlock || NeedsRaw(policy);
  defaults.factor = 1.0f;
  defaults.entropy_bound = policy == Policy::kEntropySum ? 0.35f : 0.15f;
  defaults.low_threshold = 0.4f;
  defaults.credit_alpha = 0.7f;
  defaults.credit_gamma = 0.2f;
  defaults.credit_beta = 0.8f;
  defaults.kl_threshold = 0.01f;
  defaults.vicinity_before = 16;
  defaults.vicinity_after = 16;
  defaults.vicinity_warmup = 4;
  defaults.remasking_eta = choice.remasking_schedule == RemaskingSchedule::kLoop ? 0.02f : 0.008f;
  defaults.remasking_on = 0.55f;
  defaults.remasking_off = 0.05f;
  defaults.remasking_alpha = 0.9f;
  defaults.sub_block_length = 8;
  defaults.initial_length = 0;
  SetHostDefaults(policy, defaults);
  return defaults;
}

void FillFloats(const DecodingParams& from, DecodingParams& into) {
  constexpr std::array kFloats = {&DecodingParams::threshold,
                                  &DecodingParams::factor,
                                  &DecodingParams::entropy_bound,
                                  &DecodingParams::low_threshold,
                                  &DecodingParams::edit_threshold,
                                  &DecodingParams::credit_alpha,
                                  &DecodingParams::credit_gamma,
                                  &DecodingParams::credit_beta,
                                  &DecodingParams::kl_threshold,
                                  &DecodingParams::verify_threshold,
                                  &DecodingParams::remasking_eta,
                                  &DecodingParams::remasking_on,
                                  &DecodingParams::remasking_off,
                                  &DecodingParams::remasking_alpha,
                                  &DecodingParams::block_add_threshold,
                                  &DecodingParams::eos_threshold,
                                  &DecodingParams::expand_eos_threshold,
                                  &DecodingParams::temperature_min,
                                  &DecodingParams::temperature_max};
  for (const auto field : kFloats) {
    if (!(into.*field).has_value()) into.*field = from.*field;
  }
}

/// Sets what is unset.
void Fill(const DecodingParams& from, DecodingParams& into) {
  FillFloats(from, into);
  constexpr std::array kCounts = {
      &DecodingParams::post_steps_max,  &DecodingParams::vicinity_before,  &DecodingParams::vicinity_after,
      &DecodingParams::vicinity_warmup, &DecodingParams::initial_length,   &DecodingParams::expansion,
      &DecodingParams::eos_window,      &DecodingParams::sub_block_length, &DecodingParams::stability_steps};
  for (const auto field : kCounts) {
    if (!(into.*field).has_value()) into.*field = from.*field;
  }
  if (!into.cache.has_value()) into.cache = from.cache;
  if (!into.raw_confidence.has_value()) into.raw_confidence = from.raw_confidence;
}

}  // namespace

Policy DefaultPolicy(const ModelSpec& spec, std::optional<Profile> profile) {
  if (profile.has_value()) return *SettingOf(spec, *profile).policy;
  // What the reference implementations do: exact rather than fast.
  if (spec.grid == BlockGrid::kAfterPrompt) return *SettingOf(spec, Profile::kQuality).policy;
  return *SettingOf(spec, Profile::kBalanced).policy;
}

DecodingParams WithDefaults(const ModelSpec& spec, Policy policy, const DecodingParams& choice) {
  DecodingParams resolved = choice;
  if (choice.profile.has_value()) {
    const DecodingParams setting = SettingOf(spec, *choice.profile);
    if (policy == setting.policy) Fill(setting, resolved);
    if (policy == Policy::kTokenEdit) Fill(EditSetting(*choice.profile), resolved);
  }
  Fill(DefaultsOf(spec, policy, choice), resolved);
  return resolved;
}

}  // namespace quicksilver
