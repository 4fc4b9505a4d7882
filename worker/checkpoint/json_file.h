#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace quicksilver {

inline constexpr int kJsonDepthMax = 64;

/// Parses the text of the JSON file `file`, which must hold an object. InvalidArgument, beginning with `file`: not
/// JSON, a key twice in one object (the parser would hide it), or nested deeper than kJsonDepthMax.
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& file, const std::string& text);

}  // namespace quicksilver
