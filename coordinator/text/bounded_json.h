#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace quicksilver {

struct JsonLimits {
  int depth_max = 32;
  size_t values_max = 4 << 20;
};

/// Parses a model's JSON file. InvalidArgument: not JSON, a key twice in one object, or a limit passed; one line that
/// says where.
absl::StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text, const JsonLimits& limits);

/// NotFound, InvalidArgument (longer than `bytes_max`); the message names `path`.
absl::StatusOr<std::string> ReadBoundedFile(const std::string& path, size_t bytes_max);

}  // namespace quicksilver
