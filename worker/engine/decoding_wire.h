#pragma once

#include "absl/status/statusor.h"
#include "quicksilver/v1/inference.pb.h"
#include "worker/decoding/decoding_rule.h"

// Between the enumerations and messages of the wire and those of decoding/, which knows no message.

namespace quicksilver {

v1::Policy WireOf(Policy policy);
v1::Cache WireOf(Cache cache);

/// InvalidArgument names a field whose value nobody knows.
absl::StatusOr<DecodingParams> ReadDecoding(const v1::Decoding& decoding);

}  // namespace quicksilver
