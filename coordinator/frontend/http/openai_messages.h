#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "coordinator/core/generate.h"
#include "coordinator/frontend/http/json_fields.h"

namespace quicksilver {

/// The `messages` of a chat request. Text parts of one message are joined by newlines; `developer` becomes `system`.
std::vector<ChatMessage> ReadMessages(JsonFields& fields, std::optional<ApiError>& error, size_t messages_max);

}  // namespace quicksilver
