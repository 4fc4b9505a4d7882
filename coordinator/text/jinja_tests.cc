// The tests of `x is test`, and the comparisons they share with the operators.
#include <cmath>
#include <cstdint>
#include <optional>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_strings.h"

namespace quicksilver::jinja {
namespace {

using Result = absl::StatusOr<bool>;

absl::Status Bad(const std::string& why) { return absl::InvalidArgumentError(why); }

bool IsSequence(const Value& value) {
  return value.is_text() || value.is_list() || value.is_dict() || value.is_undefined();
}

Result IsMultiple(const Value& value, int64_t of, int64_t remainder) {
  const std::optional<int64_t> integer = value.integer();
  if (!integer.has_value()) return Bad(absl::StrFormat("%s is no integer", value.type_name()));
  if (of == 0) return Bad("division by zero");
  return of == -1 ? remainder == 0 : (*integer % of != 0) == (remainder != 0);
}

bool HasCase(const Value& value, Case wanted) {
  const MarkedText* text = value.text();
  if (text == nullptr) return false;
  const Case other = wanted == Case::kLower ? Case::kUpper : Case::kLower;
  return ChangeCase(*text, wanted).text() == text->text() && ChangeCase(*text, other).text() != text->text();
}

struct PlainTest {
  std::string_view name;
  Result (*holds)(const Value& value);
};

constexpr PlainTest kPlainTests[] = {
    {"defined", [](const Value& v) -> Result { return !v.is_undefined(); }},
    {"undefined", [](const Value& v) -> Result { return v.is_undefined(); }},
    {"none", [](const Value& v) -> Result { return v.is_none(); }},
    {"string", [](const Value& v) -> Result { return v.is_text(); }},
    {"mapping", [](const Value& v) -> Result { return v.is_dict(); }},
    {"sequence", [](const Value& v) -> Result { return IsSequence(v); }},
    {"iterable", [](const Value& v) -> Result { return IsSequence(v); }},
    {"number", [](const Value& v) -> Result { return v.number().has_value(); }},
    {"integer", [](const Value& v) -> Result { return v.is_integer(); }},
    {"float", [](const Value& v) -> Result { return v.is_float(); }},
    {"boolean", [](const Value& v) -> Result { return v.is_bool(); }},
    {"true", [](const Value& v) -> Result { return v.is_bool() && v.truthy(); }},
    {"false", [](const Value& v) -> Result { return v.is_bool() && !v.truthy(); }},
    {"odd", [](const Value& v) { return IsMultiple(v, 2, 1); }},
    {"even", [](const Value& v) { return IsMultiple(v, 2, 0); }},
    {"lower", [](const Value& v) -> Result { return HasCase(v, Case::kLower); }},
    {"upper", [](const Value& v) -> Result { return HasCase(v, Case::kUpper); }},
};

// Tests with one argument, by the operator they stand for.
struct OperatorTest {
  std::string_view name;
  std::string_view op;
};

constexpr OperatorTest kOperatorTests[] = {
    {"eq", "=="}, {"equalto", "=="},    {"sameas", "=="}, {"ne", "!="}, {"lt", "<"},  {"lessthan", "<"},
    {"gt", ">"},  {"greaterthan", ">"}, {"le", "<="},     {"ge", ">="}, {"in", "in"}, {"divisibleby", "%"},
};

const PlainTest* FindPlain(std::string_view name) {
  for (const PlainTest& test : kPlainTests) {
    if (test.name == name) return &test;
  }
  return nullptr;
}

const OperatorTest* FindOperator(std::string_view name) {
  for (const OperatorTest& test : kOperatorTests) {
    if (test.name == name) return &test;
  }
  return nullptr;
}

}  // namespace

bool IsTest(std::string_view name) { return FindPlain(name) != nullptr || FindOperator(name) != nullptr; }

absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& subject, Arguments arguments, Work& work) {
  const PlainTest* plain = FindPlain(name);
  const size_t expected = plain != nullptr ? 0 : 1;
  if (arguments.plain.size() != expected || !arguments.keywords.empty()) {
    return Bad(absl::StrFormat("test %s has the wrong number of arguments", name));
  }
  if (plain != nullptr) return plain->holds(subject);
  const std::string_view op = FindOperator(name)->op;
  const Value& other = arguments.plain[0];
  if (op == "==") {
    // "sameas" is identity; for what templates ask it about (true, false, none) that is equality of one type.
    return Equal(subject, other) && (name != "sameas" || subject.type_name() == other.type_name());
  }
  if (op == "!=") return !Equal(subject, other);
  if (op == "in") return IsIn(subject, other, work);
  if (op == "%") return IsMultiple(subject, other.integer().value_or(0), 0);
  return Ordered(op, subject, other);
}

absl::StatusOr<bool> IsIn(const Value& needle, const Value& haystack, Work& work) {
  if (const MarkedText* text = haystack.text()) {
    if (!needle.is_text()) return Bad(absl::StrFormat("'in' needs a text, not %s", needle.type_name()));
    RETURN_IF_ERROR(work.Charge(text->size() * (1 + needle.text()->size() / 16)));
    return text->text().find(needle.text()->text()) != std::string::npos;
  }
  if (const List* list = haystack.list()) {
    RETURN_IF_ERROR(work.Charge(list->size() * kItemWork));
    for (const Value& item : *list) {
      if (Equal(item, needle)) return true;
    }
    return false;
  }
  if (const Dict* dict = haystack.dict()) return needle.is_text() && Find(*dict, needle.text()->text()) != nullptr;
  if (haystack.is_undefined()) return false;
  return Bad(absl::StrFormat("'in' cannot look into %s", haystack.type_name()));
}

absl::StatusOr<bool> Ordered(std::string_view op, const Value& a, const Value& b) {
  int order = 0;
  if (a.is_text() && b.is_text()) {
    order = a.text()->text().compare(b.text()->text());
  } else if (a.integer().has_value() && b.integer().has_value()) {
    order = *a.integer() < *b.integer() ? -1 : *a.integer() > *b.integer() ? 1 : 0;
  } else if (a.number().has_value() && b.number().has_value()) {
    order = *a.number() < *b.number() ? -1 : *a.number() > *b.number() ? 1 : 0;
  } else {
    return Bad(absl::StrFormat("%s and %s have no order", a.type_name(), b.type_name()));
  }
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

absl::StatusOr<Value> Attribute(const Value& value, std::string_view name) {
  if (value.is_undefined()) return Bad(absl::StrFormat("an undefined value has no '%s'", name));
  if (const Dict* dict = value.dict()) {
    const Value* found = Find(*dict, name);
    return found == nullptr ? Value() : *found;
  }
  if (const Namespace* space = value.as_namespace()) {
    const Value* found = Find(space->fields, name);
    return found == nullptr ? Value() : *found;
  }
  if (const Loop* loop = value.loop()) {
    if (name == "index") return Value(loop->index0 + 1);
    if (name == "index0") return Value(loop->index0);
    if (name == "revindex") return Value(loop->length - loop->index0);
    if (name == "revindex0") return Value(loop->length - loop->index0 - 1);
    if (name == "first") return Value(loop->index0 == 0);
    if (name == "last") return Value(loop->index0 + 1 == loop->length);
    if (name == "length") return Value(loop->length);
    if (name == "previtem") return loop->previous;
    if (name == "nextitem") return loop->next;
    return Bad(absl::StrFormat("loop.%s is not supported", name));
  }
  return Value();
}

}  // namespace quicksilver::jinja
