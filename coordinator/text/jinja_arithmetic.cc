#include "coordinator/text/jinja_arithmetic.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_strings.h"
#include "coordinator/text/utf8.h"

namespace quicksilver::jinja {
namespace {

using Result = absl::StatusOr<Value>;

constexpr int64_t kRangeMax = 100'000;  // As Jinja's sandbox.

absl::Status Bad(const std::string& why) { return absl::InvalidArgumentError(why); }

absl::Status OutOfRange() { return Bad("a number is out of range"); }

Result Divide(std::string_view op, int64_t a, int64_t b) {
  if (b == 0) return Bad("division by zero");
  if (b == -1) {
    int64_t negated = 0;
    if (__builtin_sub_overflow(int64_t{0}, a, &negated)) return OutOfRange();
    return Value(op == "%" ? 0 : negated);
  }
  const int64_t remainder = a % b;
  const bool floors = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == "%") return Value(floors ? remainder + b : remainder);
  return Value(a / b - (floors ? 1 : 0));
}

Result IntegerArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+") return __builtin_add_overflow(a, b, &result) ? Result(OutOfRange()) : Value(result);
  if (op == "-") return __builtin_sub_overflow(a, b, &result) ? Result(OutOfRange()) : Value(result);
  if (op == "*") return __builtin_mul_overflow(a, b, &result) ? Result(OutOfRange()) : Value(result);
  if (op == "//" || op == "%") return Divide(op, a, b);
  if (op == "/")
    return b == 0 ? Result(Bad("division by zero")) : Value(static_cast<double>(a) / static_cast<double>(b));
  if (b < 0 || b > 64) return Bad("only small powers are supported");
  result = 1;
  for (int64_t i = 0; i < b; ++i) {
    if (__builtin_mul_overflow(result, a, &result)) return OutOfRange();
  }
  return Value(result);
}

Result FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") return Value(std::pow(a, b));
  if (b == 0) return Bad("division by zero");
  if (op == "/") return Value(a / b);
  if (op == "//") return Value(std::floor(a / b));
  return Value(a - b * std::floor(a / b));
}

std::optional<int64_t> Bound(const Value& value, int64_t otherwise) {
  if (value.is_undefined() || value.is_none()) return otherwise;
  return value.integer();
}

int64_t Clamp(int64_t index, int64_t length, int64_t low, int64_t high) {
  if (index < 0) index += length;
  return std::clamp(index, low, high);
}

}  // namespace

Result Arithmetic(std::string_view op, const Value& a, const Value& b, Work& work) {
  if (a.integer().has_value() && b.integer().has_value()) return IntegerArithmetic(op, *a.integer(), *b.integer());
  if (a.number().has_value() && b.number().has_value()) return FloatArithmetic(op, *a.number(), *b.number());
  if (op == "+" && a.is_text() && b.is_text()) {
    RETURN_IF_ERROR(work.Charge(a.text()->size() + b.text()->size()));
    MarkedText joined = *a.text();
    joined.Append(*b.text());
    return Value(std::move(joined));
  }
  if (op == "+" && a.is_list() && b.is_list()) {
    RETURN_IF_ERROR(work.Charge((a.list()->size() + b.list()->size()) * kItemWork));
    List joined = *a.list();
    joined.insert(joined.end(), b.list()->begin(), b.list()->end());
    return Value(std::move(joined));
  }
  if (op == "*" && a.is_text() && b.is_integer()) {
    const int64_t count = std::clamp<int64_t>(*b.integer(), 0, kRangeMax);
    if (count != *b.integer() && *b.integer() > 0) return OutOfRange();
    RETURN_IF_ERROR(work.Charge(a.text()->size() * static_cast<size_t>(count)));
    MarkedText repeated;
    for (int64_t i = 0; i < count; ++i) repeated.Append(*a.text());
    return Value(std::move(repeated));
  }
  return Bad(absl::StrFormat("%s %s %s has no meaning", a.type_name(), op, b.type_name()));
}

Result Negate(const Value& value) {
  if (value.is_float()) return Value(-*value.number());
  if (!value.integer().has_value()) return Bad(absl::StrFormat("%s has no negative", value.type_name()));
  return IntegerArithmetic("-", 0, *value.integer());
}

Result ItemAt(const Value& subject, const Value& key, Work& work) {
  if (subject.is_undefined()) return Bad("an undefined value has no items");
  const std::optional<int64_t> index = key.integer();
  if (!index.has_value()) return Value();
  if (const List* list = subject.list()) {
    const int64_t length = static_cast<int64_t>(list->size());
    const int64_t at = *index < 0 ? *index + length : *index;
    return at >= 0 && at < length ? (*list)[at] : Value();
  }
  if (const MarkedText* text = subject.text()) {
    RETURN_IF_ERROR(work.Charge(text->size()));
    const int64_t length = static_cast<int64_t>(CountCodePoints(text->text()));
    const int64_t at = *index < 0 ? *index + length : *index;
    return at >= 0 && at < length ? Value(Slice(*text, at, at + 1, 1)) : Value();
  }
  return Value();
}

Result SliceOf(const Value& subject, const Value& start, const Value& stop, const Value& step_value, Work& work) {
  if (!subject.is_list() && !subject.is_text()) {
    return Bad(absl::StrFormat("%s cannot be sliced", subject.type_name()));
  }
  const MarkedText* text = subject.text();
  RETURN_IF_ERROR(work.Charge(text != nullptr ? 2 * text->size() : subject.list()->size() * kItemWork));
  const int64_t length = static_cast<int64_t>(text != nullptr ? CountCodePoints(text->text()) : subject.list()->size());
  const std::optional<int64_t> step = Bound(step_value, 1);
  if (!step.has_value() || *step == 0) return Bad("a slice needs a step that is an integer and not zero");
  const bool forward = *step > 0;
  const std::optional<int64_t> from = Bound(start, forward ? 0 : length - 1);
  // -length - 1 resolves to the place before the first item.
  const std::optional<int64_t> to = Bound(stop, forward ? length : -length - 1);
  if (!from.has_value() || !to.has_value()) return Bad("slice bounds must be integers");
  const int64_t first = forward ? Clamp(*from, length, 0, length) : Clamp(*from, length, -1, length - 1);
  const int64_t last = forward ? Clamp(*to, length, 0, length) : Clamp(*to, length, -1, length - 1);
  // A step longer than the whole takes the first item alone.
  const int64_t stride = std::clamp(*step, -length - 1, length + 1);
  if (text != nullptr) {
    if (stride != 1) RETURN_IF_ERROR(work.Charge(text->size() * 2 * sizeof(MarkedText)));
    return Value(Slice(*text, first, last, stride));
  }
  List items;
  for (int64_t i = first; forward ? i < last : i > last; i += stride) items.push_back((*subject.list())[i]);
  return Value(std::move(items));
}

Result RangeList(int64_t start, int64_t stop, int64_t step, Work& work) {
  if (step == 0) return Bad("range() needs a step that is not zero");
  List items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kRangeMax) return Bad("the range is too long");
    RETURN_IF_ERROR(work.Charge(kItemWork));
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return Value(std::move(items));
}

}  // namespace quicksilver::jinja
