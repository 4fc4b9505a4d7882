#pragma once

#include <optional>
#include <string>

#include "coordinator/service/prepare.h"

namespace quicksilver {

// The parts of Prepare() that look at what a request asks for beside its prompt. Errors name fields as the gRPC
// contract does; pure.

/// Whether the model runs the policy.
std::optional<ApiError> CheckPolicy(const DecodingChoice& decoding, const ModelFacts& model);

/// Ids that a client names itself. The mask is the one control token that has no meaning in a text.
std::optional<ApiError> CheckIds(const std::string& path, const std::vector<int32_t>& ids, const ModelFacts& model);

/// Suffix, fixed tokens and draft, as ids. An empty suffix is none.
std::optional<ApiError> PrepareInfill(const InfillChoice& infill, const TextModel& text, const ModelFacts& model,
                                      v1::Submit& submit);

/// Of the fixed tokens and the draft: they lie within the answer.
std::optional<ApiError> CheckInfillLength(const v1::Submit& submit);

/// logit_bias and forbidden_ids as one list.
std::optional<ApiError> PrepareBiases(const GenerateRequest& request, const ModelFacts& model,
                                      v1::ResolvedSampling& sampling);

}  // namespace quicksilver
