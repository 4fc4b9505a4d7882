#pragma once

#include "absl/status/status.h"
#include "worker/decoding/decoding_rule.h"

namespace quicksilver {

/// As in the client's contract, in lower case and without POLICY_.
const char* NameOf(Policy policy);

/// Its rows' ranks are all it looks at (kernels/policy/selection.h).
bool IsRankPolicy(Policy policy);
/// Dream's, over a grid of times or a quota a step.
bool IsTimeGridPolicy(Policy policy);
/// It can do with a part of the canvas at a time: no row is asked for outside of the open block.
bool MayCache(Policy policy);
/// It is defined over the raw softmax: divergences, entropies and credit of a sharpened one would mean something else.
bool NeedsRaw(Policy policy);

/// InvalidArgument when a field of `choice` is out of its bounds, or set although `policy` does not use it. Bounds that
/// depend on the model or on the answer's length are not looked at.
absl::Status CheckFields(Policy policy, const DecodingParams& choice);

}  // namespace quicksilver
