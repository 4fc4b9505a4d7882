#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja_value.h"

namespace quicksilver::jinja {

constexpr size_t kItemWork = 128;  ///< What one item of a list counts for, in bytes.

/// Bounds one rendering: what it does, counted in bytes touched.
class Work {
 public:
  explicit Work(size_t left) : left_(left) {}
  absl::Status Charge(size_t bytes);

 private:
  size_t left_;
};

struct Arguments {
  std::vector<Value> plain;
  std::vector<std::pair<std::string, Value>> keywords;
};

bool IsFilter(std::string_view name);
bool IsTest(std::string_view name);
bool IsMethod(std::string_view name);

/// Messages carry no line; the caller adds it. Text that comes out keeps the marks of the text it was made from.
/// Requires: the name is known.
absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& subject, Arguments arguments, Work& work);
absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& subject, Arguments arguments, Work& work);
absl::StatusOr<Value> CallMethod(std::string_view name, const Value& subject, Arguments arguments, Work& work);

/// Python's `needle in haystack`.
absl::StatusOr<bool> IsIn(const Value& needle, const Value& haystack, Work& work);

/// `op` is one of < <= > >=.
absl::StatusOr<bool> Ordered(std::string_view op, const Value& a, const Value& b);

/// What iterating over `value` gives; dicts give their keys, text its characters, undefined nothing.
absl::StatusOr<List> Items(const Value& value, Work& work);

/// value.name, and value[name] with a text; undefined when there is none.
absl::StatusOr<Value> Attribute(const Value& value, std::string_view name);

/// str(value), charged.
absl::StatusOr<MarkedText> TextOf(const Value& value, Work& work);

}  // namespace quicksilver::jinja
