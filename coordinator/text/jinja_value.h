#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/marked_text.h"

namespace quicksilver::jinja {

class Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // In order of insertion, keys once.
struct Namespace;
struct Loop;

struct Undefined {};
struct None {};

/// What a template expression can be. Cheap to copy: text, lists and dicts are shared and never change.
class Value {
 public:
  Value() = default;  ///< Undefined.
  explicit Value(None) : data_(None{}) {}
  explicit Value(bool value) : data_(value) {}
  explicit Value(int64_t value) : data_(value) {}
  explicit Value(double value) : data_(value) {}
  explicit Value(MarkedText text) : data_(std::make_shared<const MarkedText>(std::move(text))) {}
  explicit Value(List list);
  explicit Value(Dict dict);
  explicit Value(Namespace* value) : data_(value) {}
  explicit Value(const Loop* value) : data_(value) {}
  static Value Literal(std::string text) { return Value(MarkedText::Literal(std::move(text))); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_text() const { return text() != nullptr; }
  bool is_list() const { return list() != nullptr; }
  bool is_dict() const { return dict() != nullptr; }

  const MarkedText* text() const;  ///< Null when it is something else, here and below.
  const List* list() const;
  const Dict* dict() const;
  Namespace* as_namespace() const;
  const Loop* loop() const;
  std::optional<int64_t> integer() const;  ///< True and False count as 1 and 0, as in Python.
  std::optional<double> number() const;

  bool truthy() const;
  /// "string", "list", …: Python's word, for messages.
  std::string_view type_name() const;
  int depth() const;  ///< Of nested lists and dicts: 0 for anything else.

 private:
  template <typename Items>
  struct Box {
    Items items;
    int depth = 1;
  };
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const MarkedText>,
               std::shared_ptr<const Box<List>>, std::shared_ptr<const Box<Dict>>, Namespace*, const Loop*>
      data_;
};

struct Namespace {
  Dict fields;
};

struct Loop {
  int64_t index0 = 0;
  int64_t length = 0;
  Value previous;
  Value next;
};

const Value* Find(const Dict& dict, std::string_view key);
void Put(Dict& dict, std::string key, Value value);

/// Python's ==.
bool Equal(const Value& a, const Value& b);

/// Python's str(); none for lists, dicts and other things that no template should print.
std::optional<MarkedText> ToText(const Value& value);

/// json.dumps(value, ensure_ascii=False): content as soon as any of it is. None: not serializable.
std::optional<MarkedText> ToJson(const Value& value);

}  // namespace quicksilver::jinja
