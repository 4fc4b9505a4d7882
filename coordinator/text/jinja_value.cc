#include "coordinator/text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace quicksilver::jinja {
namespace {

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  std::string text(buffer, end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

void AppendJsonString(const std::string& text, std::string& out) {
  out.push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          char escape[8];
          std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned char>(c));
          out += escape;
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

bool AppendJson(const Value& value, std::string& out, bool& has_content) {
  if (const MarkedText* text = value.text()) {
    has_content = has_content || !text->content().empty();
    AppendJsonString(text->text(), out);
  } else if (const List* list = value.list()) {
    out.push_back('[');
    for (size_t i = 0; i < list->size(); ++i) {
      if (i > 0) out += ", ";
      if (!AppendJson((*list)[i], out, has_content)) return false;
    }
    out.push_back(']');
  } else if (const Dict* dict = value.dict()) {
    out.push_back('{');
    for (size_t i = 0; i < dict->size(); ++i) {
      if (i > 0) out += ", ";
      AppendJsonString((*dict)[i].first, out);
      out += ": ";
      if (!AppendJson((*dict)[i].second, out, has_content)) return false;
    }
    out.push_back('}');
  } else if (value.is_none()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.truthy() ? "true" : "false";
  } else if (value.is_integer() || value.is_float()) {
    out += ToText(value)->text();
  } else {
    return false;
  }
  return true;
}

}  // namespace

Value::Value(List list) {
  int depth = 0;
  for (const Value& item : list) depth = std::max(depth, item.depth());
  data_ = std::make_shared<const Box<List>>(Box<List>{std::move(list), depth + 1});
}

Value::Value(Dict dict) {
  int depth = 0;
  for (const auto& [key, item] : dict) depth = std::max(depth, item.depth());
  data_ = std::make_shared<const Box<Dict>>(Box<Dict>{std::move(dict), depth + 1});
}

const MarkedText* Value::text() const {
  const auto* text = std::get_if<std::shared_ptr<const MarkedText>>(&data_);
  return text == nullptr ? nullptr : text->get();
}

const List* Value::list() const {
  const auto* box = std::get_if<std::shared_ptr<const Box<List>>>(&data_);
  return box == nullptr ? nullptr : &(*box)->items;
}

const Dict* Value::dict() const {
  const auto* box = std::get_if<std::shared_ptr<const Box<Dict>>>(&data_);
  return box == nullptr ? nullptr : &(*box)->items;
}

Namespace* Value::as_namespace() const {
  const auto* pointer = std::get_if<Namespace*>(&data_);
  return pointer == nullptr ? nullptr : *pointer;
}

const Loop* Value::loop() const {
  const auto* pointer = std::get_if<const Loop*>(&data_);
  return pointer == nullptr ? nullptr : *pointer;
}

std::optional<int64_t> Value::integer() const {
  if (const auto* value = std::get_if<int64_t>(&data_)) return *value;
  if (const auto* value = std::get_if<bool>(&data_)) return *value ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const auto* value = std::get_if<double>(&data_)) return *value;
  const std::optional<int64_t> value = integer();
  return value.has_value() ? std::optional<double>(static_cast<double>(*value)) : std::nullopt;
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (const std::optional<double> value = number(); value.has_value()) return *value != 0;
  if (const MarkedText* value = text()) return value->size() > 0;
  if (const List* value = list()) return !value->empty();
  if (const Dict* value = dict()) return !value->empty();
  return true;
}

std::string_view Value::type_name() const {
  static constexpr std::string_view kNames[] = {"undefined", "None", "bool", "int",       "float",
                                                "str",       "list", "dict", "namespace", "loop"};
  return kNames[data_.index()];
}

int Value::depth() const {
  if (const auto* box = std::get_if<std::shared_ptr<const Box<List>>>(&data_)) return (*box)->depth;
  if (const auto* box = std::get_if<std::shared_ptr<const Box<Dict>>>(&data_)) return (*box)->depth;
  return 0;
}

const Value* Find(const Dict& dict, std::string_view key) {
  for (const auto& [name, value] : dict) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Put(Dict& dict, std::string key, Value value) {
  for (auto& [name, old] : dict) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  dict.emplace_back(std::move(key), std::move(value));
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (a.integer().has_value() && b.integer().has_value()) return a.integer() == b.integer();
  if (a.number().has_value() && b.number().has_value()) return a.number() == b.number();
  if (a.is_text() && b.is_text()) return a.text()->text() == b.text()->text();
  if (a.is_list() && b.is_list())
    return std::equal(a.list()->begin(), a.list()->end(), b.list()->begin(), b.list()->end(), Equal);
  if (a.is_dict() && b.is_dict()) {
    if (a.dict()->size() != b.dict()->size()) return false;
    return std::all_of(a.dict()->begin(), a.dict()->end(), [&](const auto& entry) {
      const Value* other = Find(*b.dict(), entry.first);
      return other != nullptr && Equal(entry.second, *other);
    });
  }
  if (a.as_namespace() != nullptr) return a.as_namespace() == b.as_namespace();
  return a.loop() != nullptr && a.loop() == b.loop();
}

std::optional<MarkedText> ToText(const Value& value) {
  if (const MarkedText* text = value.text()) return *text;
  if (value.is_undefined()) return MarkedText();
  if (value.is_none()) return MarkedText::Literal("None");
  if (value.is_bool()) return MarkedText::Literal(value.truthy() ? "True" : "False");
  if (value.is_integer()) return MarkedText::Literal(absl::StrCat(*value.integer()));
  if (value.is_float()) return MarkedText::Literal(FloatText(*value.number()));
  return std::nullopt;
}

std::optional<MarkedText> ToJson(const Value& value) {
  std::string out;
  bool has_content = false;
  if (!AppendJson(value, out, has_content)) return std::nullopt;
  return has_content ? MarkedText::Content(std::move(out)) : MarkedText::Literal(std::move(out));
}

}  // namespace quicksilver::jinja
