#pragma once

#include "absl/status/statusor.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/decoding/sequence.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// Most stop tokens of one sequence.
inline constexpr int kStopIdsMax = 256;

/// Turns a submission into a sequence. `stop_ids` are taken as they are: the model's own are not added.
/// InvalidArgument names field, value and bound.
absl::StatusOr<SequenceSpec> MakeSequenceSpec(const ModelSpec& model, const v1::Submit& submit, bool finish_blocks);

}  // namespace quicksilver
