#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/decoding/sequence.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// Most stop tokens of one sequence.
inline constexpr int kStopIdsMax = 256;
/// Most biases of one sequence, forbidden ids included, and the largest one.
inline constexpr int kBiasesMax = 2048;
inline constexpr float kBiasMax = 100.0f;
inline constexpr size_t kSubmitTenantBytesMax = 128;
inline constexpr size_t kCacheSaltBytesMax = 64;
/// Longest deadline or target: some 31 years, so that sums with a clock cannot overflow.
inline constexpr uint64_t kTermMicrosMax = 1'000'000'000'000'000;

/// Turns a submission into a sequence, which goes on where its checkpoint says. `stop_ids` are taken as they are: the
/// model's own are not added. InvalidArgument names field, value and bound.
absl::StatusOr<SequenceSpec> MakeSequenceSpec(const ModelSpec& model, const v1::Submit& submit);

}  // namespace quicksilver
