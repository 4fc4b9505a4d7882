#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace quicksilver {

/// Parses a model's JSON file within bounds. InvalidArgument: not JSON, a key twice in one object, or a limit passed;
/// one line that says where.
absl::StatusOr<nlohmann::json> ParseModelJson(std::string_view text);

/// NotFound, InvalidArgument (longer than `bytes_max`); the message names `path`.
absl::StatusOr<std::string> ReadModelFile(const std::string& path, size_t bytes_max);

}  // namespace quicksilver
