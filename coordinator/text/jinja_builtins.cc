#include "coordinator/text/jinja_builtins.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_strings.h"
#include "coordinator/text/utf8.h"

namespace quicksilver::jinja {
namespace {

using Result = absl::StatusOr<Value>;

absl::Status Bad(const std::string& why) { return absl::InvalidArgumentError(why); }

// A builtin and the names of its parameters, by which plain arguments and keywords meet; absent ones are undefined.
struct Builtin {
  std::string_view name;
  std::vector<std::string_view> parameters;
  Result (*apply)(const Value& subject, const std::vector<Value>& arguments, Work& work);
};

const Builtin* Find(const std::vector<Builtin>& table, std::string_view name) {
  for (const Builtin& builtin : table) {
    if (builtin.name == name) return &builtin;
  }
  return nullptr;
}

Result Apply(const Builtin& builtin, const Value& subject, Arguments arguments, Work& work) {
  std::vector<Value> bound = std::move(arguments.plain);
  if (bound.size() > builtin.parameters.size()) return Bad(absl::StrFormat("%s has too many arguments", builtin.name));
  bound.resize(builtin.parameters.size());
  for (auto& [keyword, value] : arguments.keywords) {
    const auto place = std::find(builtin.parameters.begin(), builtin.parameters.end(), keyword);
    if (place == builtin.parameters.end()) {
      return Bad(absl::StrFormat("%s has no argument %s", builtin.name, keyword));
    }
    bound[place - builtin.parameters.begin()] = std::move(value);
  }
  return builtin.apply(subject, bound, work);
}

absl::StatusOr<std::string_view> TextArgument(const Value& value) {
  if (!value.is_text()) return Bad(absl::StrFormat("a text is needed, not %s", value.type_name()));
  return std::string_view(value.text()->text());
}

template <Side side>
Result StripText(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText text, TextOf(subject, work));
  if (arguments[0].is_undefined() || arguments[0].is_none()) return Value(Strip(text, nullptr, side));
  ASSIGN_OR_RETURN(const std::string_view chars, TextArgument(arguments[0]));
  RETURN_IF_ERROR(work.Charge(text.size() * (1 + chars.size() / 8)));
  return Value(Strip(text, &chars, side));
}

template <Case to>
Result CaseText(const Value& subject, const std::vector<Value>&, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText text, TextOf(subject, work));
  return Value(ChangeCase(text, to));
}

absl::Status ChargeSearch(size_t text, size_t pattern, Work& work) { return work.Charge(text * (1 + pattern / 16)); }

Result ReplaceText(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText text, TextOf(subject, work));
  ASSIGN_OR_RETURN(const std::string_view from, TextArgument(arguments[0]));
  ASSIGN_OR_RETURN(const MarkedText to, TextOf(arguments[1], work));
  if (from.empty()) return Bad("replace of an empty text is not supported");
  RETURN_IF_ERROR(ChargeSearch(text.size(), from.size(), work));
  RETURN_IF_ERROR(work.Charge(text.size() / from.size() * to.size()));
  return Value(Replace(text, from, to, arguments[2].integer().value_or(-1)));
}

Result Length(const Value& subject, const std::vector<Value>&, Work& work) {
  if (const MarkedText* text = subject.text()) {
    RETURN_IF_ERROR(work.Charge(text->size()));
    return Value(static_cast<int64_t>(CountCodePoints(text->text())));
  }
  if (const List* list = subject.list()) return Value(static_cast<int64_t>(list->size()));
  if (const Dict* dict = subject.dict()) return Value(static_cast<int64_t>(dict->size()));
  if (subject.is_undefined()) return Value(int64_t{0});
  return Bad(absl::StrFormat("%s has no length", subject.type_name()));
}

Result ToJsonText(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  if (arguments[0].truthy()) return Bad("tojson with ensure_ascii is not supported");
  std::optional<MarkedText> json = ToJson(subject);
  if (!json.has_value()) return Bad(absl::StrFormat("%s cannot be written as JSON", subject.type_name()));
  RETURN_IF_ERROR(work.Charge(json->size()));
  return Value(*std::move(json));
}

Result JoinTexts(const Value& items_value, const MarkedText& separator, Work& work) {
  ASSIGN_OR_RETURN(const List items, Items(items_value, work));
  MarkedText joined;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(const MarkedText text, TextOf(items[i], work));
    RETURN_IF_ERROR(work.Charge(separator.size()));
    if (i > 0) joined.Append(separator);
    joined.Append(text);
  }
  return Value(std::move(joined));
}

Result JoinFilter(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText separator, TextOf(arguments[0], work));
  return JoinTexts(subject, separator, work);
}

Result JoinMethod(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText separator, TextOf(subject, work));
  return JoinTexts(arguments[0], separator, work);
}

Result Default(const Value& subject, const std::vector<Value>& arguments, Work&) {
  const bool absent = arguments[1].truthy() ? !subject.truthy() : subject.is_undefined();
  if (!absent) return subject;
  return arguments[0].is_undefined() ? Value::Literal("") : arguments[0];
}

Result First(const Value& subject, const std::vector<Value>&, Work& work) {
  ASSIGN_OR_RETURN(const List items, Items(subject, work));
  return items.empty() ? Value() : items.front();
}

Result Last(const Value& subject, const std::vector<Value>&, Work& work) {
  ASSIGN_OR_RETURN(const List items, Items(subject, work));
  return items.empty() ? Value() : items.back();
}

Result ToList(const Value& subject, const std::vector<Value>&, Work& work) {
  ASSIGN_OR_RETURN(List items, Items(subject, work));
  return Value(std::move(items));
}

Result Reverse(const Value& subject, const std::vector<Value>&, Work& work) {
  ASSIGN_OR_RETURN(List items, Items(subject, work));
  std::reverse(items.begin(), items.end());
  if (subject.is_text()) return JoinTexts(Value(std::move(items)), MarkedText(), work);
  return Value(std::move(items));
}

Result ToString(const Value& subject, const std::vector<Value>&, Work& work) {
  ASSIGN_OR_RETURN(MarkedText text, TextOf(subject, work));
  return Value(std::move(text));
}

Result DictItems(const Value& subject, const std::vector<Value>&, Work&) {
  if (subject.is_undefined()) return Value(List{});
  if (!subject.is_dict()) return Bad(absl::StrFormat("%s has no items", subject.type_name()));
  List items;
  for (const auto& [key, value] : *subject.dict()) items.emplace_back(List{Value::Literal(key), value});
  return Value(std::move(items));
}

Result DictKeys(const Value& subject, const std::vector<Value>&, Work& work) {
  if (!subject.is_dict()) return Bad(absl::StrFormat("%s has no keys", subject.type_name()));
  ASSIGN_OR_RETURN(List keys, Items(subject, work));
  return Value(std::move(keys));
}

Result DictValues(const Value& subject, const std::vector<Value>&, Work&) {
  if (!subject.is_dict()) return Bad(absl::StrFormat("%s has no values", subject.type_name()));
  List values;
  for (const auto& [key, value] : *subject.dict()) values.push_back(value);
  return Value(std::move(values));
}

Result DictGet(const Value& subject, const std::vector<Value>& arguments, Work&) {
  if (!subject.is_dict()) return Bad(absl::StrFormat("%s has no method get()", subject.type_name()));
  ASSIGN_OR_RETURN(const std::string_view key, TextArgument(arguments[0]));
  if (const Value* found = Find(*subject.dict(), key)) return *found;
  return arguments[1].is_undefined() ? Value(None{}) : arguments[1];
}

Result Map(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  if (arguments[0].is_undefined()) return Bad("map without attribute is not supported");
  ASSIGN_OR_RETURN(const std::string_view attribute, TextArgument(arguments[0]));
  ASSIGN_OR_RETURN(List items, Items(subject, work));
  for (Value& item : items) {
    ASSIGN_OR_RETURN(item, Attribute(item, attribute));
  }
  return Value(std::move(items));
}

template <bool wanted>
Result SelectAttribute(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const std::string_view attribute, TextArgument(arguments[0]));
  ASSIGN_OR_RETURN(List items, Items(subject, work));
  List selected;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(const Value value, Attribute(item, attribute));
    bool holds = value.truthy();
    if (!arguments[1].is_undefined()) {
      ASSIGN_OR_RETURN(const std::string_view test, TextArgument(arguments[1]));
      if (!IsTest(test)) return Bad(absl::StrFormat("test %s is not supported", test));
      Arguments test_arguments;
      if (!arguments[2].is_undefined()) test_arguments.plain.push_back(arguments[2]);
      ASSIGN_OR_RETURN(holds, ApplyTest(test, value, std::move(test_arguments), work));
    }
    if (holds == wanted) selected.push_back(std::move(item));
  }
  return Value(std::move(selected));
}

template <bool at_start>
Result HasAffix(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  const std::string_view text = subject.text()->text();
  const List candidates = arguments[0].is_list() ? *arguments[0].list() : List{arguments[0]};
  for (const Value& candidate : candidates) {
    ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(candidate));
    RETURN_IF_ERROR(work.Charge(affix.size()));
    if (at_start ? text.starts_with(affix) : text.ends_with(affix)) return Value(true);
  }
  return Value(false);
}

template <bool at_start>
Result RemoveAffix(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText text, TextOf(subject, work));
  ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(arguments[0]));
  const std::string_view bytes = text.text();
  if (at_start) return bytes.starts_with(affix) ? Value(text.Substring(affix.size(), bytes.size())) : subject;
  return bytes.ends_with(affix) ? Value(text.Substring(0, bytes.size() - affix.size())) : subject;
}

template <bool from_right>
Result SplitText(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  ASSIGN_OR_RETURN(const MarkedText text, TextOf(subject, work));
  const int64_t cuts_max = arguments[1].integer().value_or(-1);
  std::vector<MarkedText> parts;
  if (arguments[0].is_undefined() || arguments[0].is_none()) {
    if (cuts_max >= 0) return Bad("split at white space with a limit is not supported");
    parts = SplitAtSpaces(text);
  } else {
    ASSIGN_OR_RETURN(const std::string_view separator, TextArgument(arguments[0]));
    if (separator.empty()) return Bad("empty separator");
    RETURN_IF_ERROR(ChargeSearch(text.size(), separator.size(), work));
    parts = Split(text, separator, cuts_max, from_right);
  }
  RETURN_IF_ERROR(work.Charge(parts.size() * kItemWork));
  List list;
  for (MarkedText& part : parts) list.emplace_back(std::move(part));
  return Value(std::move(list));
}

Result FindText(const Value& subject, const std::vector<Value>& arguments, Work& work) {
  const std::string_view text = subject.text()->text();
  ASSIGN_OR_RETURN(const std::string_view needle, TextArgument(arguments[0]));
  RETURN_IF_ERROR(ChargeSearch(text.size(), needle.size(), work));
  const size_t found = text.find(needle);
  if (found == std::string_view::npos) return Value(int64_t{-1});
  return Value(static_cast<int64_t>(CountCodePoints(text.substr(0, found))));
}

const std::vector<Builtin>& Filters() {
  static const auto* const kFilters = new std::vector<Builtin>{
      {"trim", {"chars"}, StripText<Side::kBoth>},
      {"lower", {}, CaseText<Case::kLower>},
      {"upper", {}, CaseText<Case::kUpper>},
      {"title", {}, CaseText<Case::kTitle>},
      {"capitalize", {}, CaseText<Case::kCapitalize>},
      {"replace", {"old", "new", "count"}, ReplaceText},
      {"length", {}, Length},
      {"count", {}, Length},
      {"tojson", {"ensure_ascii"}, ToJsonText},
      {"join", {"d"}, JoinFilter},
      {"default", {"default_value", "boolean"}, Default},
      {"d", {"default_value", "boolean"}, Default},
      {"first", {}, First},
      {"last", {}, Last},
      {"list", {}, ToList},
      {"reverse", {}, Reverse},
      {"string", {}, ToString},
      {"safe", {}, ToString},
      {"items", {}, DictItems},
      {"map", {"attribute"}, Map},
      {"selectattr", {"attribute", "test", "value"}, SelectAttribute<true>},
      {"rejectattr", {"attribute", "test", "value"}, SelectAttribute<false>},
  };
  return *kFilters;
}

const std::vector<Builtin>& TextMethods() {
  static const auto* const kMethods = new std::vector<Builtin>{
      {"strip", {"chars"}, StripText<Side::kBoth>},
      {"lstrip", {"chars"}, StripText<Side::kLeft>},
      {"rstrip", {"chars"}, StripText<Side::kRight>},
      {"startswith", {"prefix"}, HasAffix<true>},
      {"endswith", {"suffix"}, HasAffix<false>},
      {"removeprefix", {"prefix"}, RemoveAffix<true>},
      {"removesuffix", {"suffix"}, RemoveAffix<false>},
      {"split", {"sep", "maxsplit"}, SplitText<false>},
      {"rsplit", {"sep", "maxsplit"}, SplitText<true>},
      {"replace", {"old", "new", "count"}, ReplaceText},
      {"find", {"sub"}, FindText},
      {"join", {"iterable"}, JoinMethod},
      {"lower", {}, CaseText<Case::kLower>},
      {"upper", {}, CaseText<Case::kUpper>},
      {"title", {}, CaseText<Case::kTitle>},
      {"capitalize", {}, CaseText<Case::kCapitalize>},
  };
  return *kMethods;
}

const std::vector<Builtin>& DictMethods() {
  static const auto* const kMethods = new std::vector<Builtin>{
      {"items", {}, DictItems},
      {"keys", {}, DictKeys},
      {"values", {}, DictValues},
      {"get", {"key", "default"}, DictGet},
  };
  return *kMethods;
}

}  // namespace

absl::Status Work::Charge(size_t bytes) {
  if (bytes > left_) return absl::ResourceExhaustedError("the chat template does too much work on these messages");
  left_ -= bytes;
  return absl::OkStatus();
}

bool IsFilter(std::string_view name) { return Find(Filters(), name) != nullptr; }

bool IsMethod(std::string_view name) {
  return Find(TextMethods(), name) != nullptr || Find(DictMethods(), name) != nullptr;
}

absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& subject, Arguments arguments, Work& work) {
  return Apply(*Find(Filters(), name), subject, std::move(arguments), work);
}

absl::StatusOr<Value> CallMethod(std::string_view name, const Value& subject, Arguments arguments, Work& work) {
  const Builtin* method = nullptr;
  if (subject.is_text()) method = Find(TextMethods(), name);
  if (subject.is_dict()) method = Find(DictMethods(), name);
  if (method == nullptr) return Bad(absl::StrFormat("%s has no method %s()", subject.type_name(), name));
  return Apply(*method, subject, std::move(arguments), work);
}

absl::StatusOr<List> Items(const Value& value, Work& work) {
  List items;
  if (const List* list = value.list()) {
    RETURN_IF_ERROR(work.Charge(list->size() * kItemWork));
    return *list;
  }
  if (const Dict* dict = value.dict()) {
    for (const auto& [key, item] : *dict) items.push_back(Value::Literal(key));
    return items;
  }
  if (const MarkedText* text = value.text()) {
    RETURN_IF_ERROR(work.Charge(text->size() * 2 * sizeof(MarkedText)));
    for (size_t at = 0; at < text->size();) {
      const size_t length = CodePointAt(text->text(), at).length;
      items.emplace_back(text->Substring(at, at + length));
      at += length;
    }
    return items;
  }
  if (value.is_undefined()) return items;
  return Bad(absl::StrFormat("%s cannot be iterated over", value.type_name()));
}

absl::StatusOr<MarkedText> TextOf(const Value& value, Work& work) {
  if (const MarkedText* text = value.text()) RETURN_IF_ERROR(work.Charge(text->size()));
  std::optional<MarkedText> text = ToText(value);
  if (!text.has_value()) return Bad(absl::StrFormat("%s cannot be printed", value.type_name()));
  return *std::move(text);
}

}  // namespace quicksilver::jinja
