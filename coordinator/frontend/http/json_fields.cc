#include "coordinator/frontend/http/json_fields.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

namespace quicksilver {
namespace {

using nlohmann::json;

std::string Format(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", number);
  return text;
}

size_t Characters(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string JsonKind(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::boolean:
      return "a boolean";
    case json::value_t::string:
      return "a string";
    case json::value_t::array:
      return "an array";
    case json::value_t::object:
      return "an object";
    case json::value_t::number_float:
      return "a fraction";
    default:
      return "an integer";
  }
}

JsonFields::JsonFields(const json& object, std::string prefix, std::optional<ApiError>& error)
    : object_(object), prefix_(std::move(prefix)), error_(error) {}

std::string JsonFields::Path(std::string_view name) const { return prefix_ + std::string(name); }

void JsonFields::Fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

void JsonFields::FailValue(std::string_view name, const std::string& message) {
  Fail(InvalidRequest("invalid_value", Path(name), "Invalid value for `" + Path(name) + "`: " + message + "."));
}

void JsonFields::FailMissing(std::string_view name) {
  Fail(InvalidRequest("missing_required_parameter", Path(name), "Missing required parameter: `" + Path(name) + "`."));
}

const json* JsonFields::Find(std::string_view name) {
  known_.emplace(name);
  if (failed()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const json* JsonFields::FindObject(std::string_view name) {
  const json* value = Find(name);
  if (value == nullptr || value->is_object()) return value;
  FailValue(name, "expected an object, got " + JsonKind(*value));
  return nullptr;
}

const json* JsonFields::FindArray(std::string_view name, size_t items_max) {
  const json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    FailValue(name, "expected an array, got " + JsonKind(*value));
    return nullptr;
  }
  if (value->size() > items_max) {
    FailValue(name, "expected at most " + std::to_string(items_max) + " items, got " + std::to_string(value->size()));
    return nullptr;
  }
  return value;
}

std::optional<bool> JsonFields::Bool(std::string_view name) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  FailValue(name, "expected a boolean, got " + JsonKind(*value));
  return std::nullopt;
}

std::optional<int64_t> JsonFields::Integer(std::string_view name, int64_t min, int64_t max) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    FailValue(name, "expected an integer, got " + JsonKind(*value));
    return std::nullopt;
  }
  const int64_t number = value->get<int64_t>();
  if (number < min || number > max) {
    FailValue(name, "expected an integer " +
                        (max == INT64_MAX ? "of at least " + std::to_string(min)
                                          : "from " + std::to_string(min) + " to " + std::to_string(max)) +
                        ", got " + std::to_string(number));
    return std::nullopt;
  }
  return number;
}

std::optional<double> JsonFields::Number(std::string_view name, double min, double max, bool open_below) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    FailValue(name, "expected a number, got " + JsonKind(*value));
    return std::nullopt;
  }
  const double number = value->get<double>();
  if (number < min || number > max || (open_below && number == min)) {
    FailValue(name, std::string("expected a number ") + (open_below ? "above " : "from ") + Format(min) +
                        (open_below ? " up to " : " to ") + Format(max) + ", got " + Format(number));
    return std::nullopt;
  }
  return number;
}

std::optional<std::string> JsonFields::String(std::string_view name, size_t characters_max) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    FailValue(name, "expected a string, got " + JsonKind(*value));
    return std::nullopt;
  }
  const std::string& text = value->get_ref<const std::string&>();
  if (characters_max != std::string::npos && Characters(text) > characters_max) {
    FailValue(name, "expected at most " + std::to_string(characters_max) + " characters, got " +
                        std::to_string(Characters(text)));
    return std::nullopt;
  }
  return text;
}

std::optional<std::string> JsonFields::OneOf(std::string_view name, std::span<const std::string_view> values) {
  std::optional<std::string> text = String(name);
  if (!text || std::find(values.begin(), values.end(), *text) != values.end()) return text;
  std::string expected;
  for (std::string_view value : values) {
    expected += (expected.empty() ? "'" : ", '") + std::string(value) + "'";
  }
  FailValue(name, "expected one of " + expected + ", got '" + text->substr(0, 64) + "'");
  return std::nullopt;
}

void JsonFields::RejectUnknown() {
  for (const auto& [name, value] : object_.items()) {
    if (known_.count(name) > 0) continue;
    const std::string path = Path(name.substr(0, 64));
    return Fail(InvalidRequest("unknown_parameter", path, "Unknown parameter: `" + path + "`."));
  }
}

}  // namespace quicksilver
