#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace quicksilver {

struct JsonTextLimits {
  size_t bytes_max = 8 * 1024 * 1024;
  size_t depth_max = 64;         ///< Arrays and objects inside each other.
  size_t digits_max = 64;        ///< Characters of one number.
  size_t items_max = 1'000'000;  ///< Of one array or object.
  bool keys_once = false;        ///< For files: a repeated key is invalid_json, named in the message.
};

struct JsonError {
  std::string code;     ///< invalid_json, invalid_utf8 or invalid_value (serving.md §10).
  std::string message;  ///< Says where; repeats no text but a repeated key.
  size_t byte = 0;      ///< Position from 0.
};

/// Parses one JSON text from outside into `value`; says what is wrong if it cannot be. A leading byte order mark is
/// skipped; of equal keys the last wins unless `keys_once`; an integer outside int64 and a number outside double are
/// invalid_value; a NUL byte and malformed UTF-8 are invalid_utf8, a lone surrogate escape is invalid_json. The only
/// parser of text from outside in the project. Pure.
std::optional<JsonError> ParseJson(std::string_view text, const JsonTextLimits& limits, nlohmann::json& value);

}  // namespace quicksilver
