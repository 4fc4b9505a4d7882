#include "worker/checkpoint/json_file.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "nlohmann/json.hpp"

namespace quicksilver {

absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& file, const std::string& text) {
  nlohmann::json parsed;
  const JsonTextLimits limits{.bytes_max = text.size(), .depth_max = kJsonDepthMax, .keys_once = true};
  if (const std::optional<JsonError> error = ParseJson(text, limits, parsed)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": expected JSON: ", error->message));
  }
  if (parsed.is_object()) return parsed;
  return absl::InvalidArgumentError(absl::StrCat(file, ": expected an object, found ", parsed.type_name()));
}

}  // namespace quicksilver
