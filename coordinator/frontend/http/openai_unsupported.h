#pragma once

#include <optional>

#include "coordinator/core/api_error.h"
#include "coordinator/frontend/http/json_fields.h"

namespace quicksilver {

// The fields of serving.md §1.3 and §1.6 that change nothing here: checked like the others, then either accepted
// (because the answer is right without them) or refused (because it would not be).

/// Structured output, tools, audio and their predecessors.
void CheckChatOnlyFields(JsonFields& fields, std::optional<ApiError>& error);
/// `diffusing`, where there is no chat.
void CheckNoDiffusing(JsonFields& fields);
/// user, metadata, store and the like.
void CheckIgnoredFields(JsonFields& fields, std::optional<ApiError>& error);

}  // namespace quicksilver
