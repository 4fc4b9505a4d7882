#pragma once

#include <cstdint>
#include <optional>

#include "worker/decoding/decoding_rule.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

inline constexpr int32_t kRenoiseSteps = 48;
inline constexpr int32_t kRenoiseStepsMax = 1024;
inline constexpr int32_t kTimesMax = 65536;
inline constexpr int32_t kWinoBlock = 128;
inline constexpr int32_t kKlassBlock = 64;

/// What a family runs when nothing is asked for, or a profile alone.
Policy DefaultPolicy(const ModelSpec& spec, std::optional<Profile> profile);

/// `choice` with the fields that `policy` uses and that are unset: those of its profile, if that is of the same policy,
/// then the published defaults of the policy (decoding.md; docs/policies.md has the table).
DecodingParams WithDefaults(const ModelSpec& spec, Policy policy, const DecodingParams& choice);

}  // namespace quicksilver
