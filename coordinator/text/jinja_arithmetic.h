#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_value.h"

namespace quicksilver::jinja {

/// a op b with Python's meaning; op is one of + - * / // % **. InvalidArgument: not for these types, or out of range.
absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& a, const Value& b, Work& work);
absl::StatusOr<Value> Negate(const Value& value);

/// subject[key] for a key that is no text; undefined out of range.
absl::StatusOr<Value> ItemAt(const Value& subject, const Value& key, Work& work);

/// subject[start:stop:step]; undefined and None bounds are absent.
absl::StatusOr<Value> SliceOf(const Value& subject, const Value& start, const Value& stop, const Value& step,
                              Work& work);

absl::StatusOr<Value> RangeList(int64_t start, int64_t stop, int64_t step, Work& work);

}  // namespace quicksilver::jinja
