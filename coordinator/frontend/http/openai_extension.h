#pragma once

#include <optional>

#include "coordinator/frontend/http/json_fields.h"
#include "coordinator/frontend/http/openai_request.h"

namespace quicksilver {

/// Our own object `quicksilver` (serving.md §1.12): every field of kDecodingFields, and what OpenAI has no name for.
/// Unknown keys are errors, since nobody else could have meant them.
void ReadExtension(JsonFields& outer, std::optional<ApiError>& error, OpenAiRequest& request,
                   GenerateRequest& generation);

/// An error of the service, which names fields as the gRPC contract does, in the names of this API.
ApiError InHttpTerms(ApiError error);

}  // namespace quicksilver
