#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "coordinator/core/api_error.h"

namespace quicksilver {

/// Reads the fields of a JSON object that a client sent. An explicit null means "not given". The first fault sticks:
/// after it every reader answers nullopt, so that a whole request can be read before `error` is looked at once. Pure.
class JsonFields {
 public:
  /// `object` must be an object and live as long as this. `prefix` comes before every name in `param`
  /// ("messages[0].").
  JsonFields(const nlohmann::json& object, std::string prefix, std::optional<ApiError>& error);

  /// The field, or null when it is not given.
  const nlohmann::json* Find(std::string_view name);
  const nlohmann::json* FindObject(std::string_view name);
  const nlohmann::json* FindArray(std::string_view name, size_t items_max);
  std::optional<bool> Bool(std::string_view name);
  std::optional<int64_t> Integer(std::string_view name, int64_t min, int64_t max);
  /// Requires min <= x <= max, or min < x when `open_below`.
  std::optional<double> Number(std::string_view name, double min, double max, bool open_below = false);
  std::optional<std::string> String(std::string_view name, size_t characters_max = std::string::npos);
  std::optional<std::string> OneOf(std::string_view name, std::span<const std::string_view> values);
  std::optional<std::string> OneOf(std::string_view name, std::initializer_list<std::string_view> values) {
    return OneOf(name, std::span(values.begin(), values.size()));
  }

  /// The path of a field, as `param` spells it.
  std::string Path(std::string_view name) const;
  void Fail(ApiError error);
  void FailValue(std::string_view name, const std::string& message);
  void FailMissing(std::string_view name);
  /// Fails on the first field that no reader has asked for.
  void RejectUnknown();
  bool failed() const { return error_.has_value(); }

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
  std::optional<ApiError>& error_;
  std::set<std::string, std::less<>> known_;
};

/// What kind of value it is, for messages: "a string".
std::string JsonKind(const nlohmann::json& value);

}  // namespace quicksilver
