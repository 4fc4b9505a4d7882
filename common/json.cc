#include "common/json.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "common/utf8.h"

namespace quicksilver {
namespace {

using nlohmann::json;

// Builds the value and stops at the first limit. The library's parser keeps its own stack, so depth costs no recursion.
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(const JsonTextLimits& limits, json& root) : limits_(limits), root_(root) {}

  bool null() override { return Add(json()); }
  bool boolean(bool value) override { return Add(json(value)); }
  bool number_integer(number_integer_t value) override { return Add(json(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return Fail("invalid_value", "an integer is beyond 64 bits");
    return Add(json(value));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.size() > limits_.digits_max) {
      return Fail("invalid_json", "a number has more than " + std::to_string(limits_.digits_max) + " characters");
    }
    if (text.find_first_of(".eE") == string_t::npos) return Fail("invalid_value", "an integer is beyond 64 bits");
    return Add(json(value));
  }
  bool string(string_t& value) override { return Add(json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("invalid_json", "binary values are not JSON"); }
  bool key(string_t& name) override {
    if (limits_.keys_once && stack_.back()->contains(name)) {
      return Fail("invalid_json", "key " + json(name).dump(-1, ' ', true) + " appears twice");
    }
    key_ = std::move(name);
    return true;
  }
  bool start_object(size_t) override { return Open(json::object()); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& thrown) override {
    byte_ = position == 0 ? 0 : position - 1;
    if (thrown.id == 406) return Fail("invalid_value", "a number is beyond double");
    // "[…] parse error at …: syntax error while parsing X - what is wrong; last read: '…'; expected Y"
    const std::string_view what = thrown.what();
    const size_t begin = what.find(" - ");
    const size_t end = what.find("; last read");
    if (begin == std::string_view::npos || end == std::string_view::npos || end < begin) {
      return Fail("invalid_json", "syntax error");
    }
    return Fail("invalid_json", std::string(what.substr(begin + 3, end - begin - 3)));
  }

  std::optional<JsonError> error;
  bool located() const { return byte_.has_value(); }
  size_t byte() const { return byte_.value_or(0); }

 private:
  bool Fail(std::string code, std::string message) {
    if (!error) error = JsonError{std::move(code), std::move(message), byte()};
    return false;
  }

  // The place where the next value goes, or null at a limit.
  json* Place() {
    if (stack_.empty()) return &root_;
    json& parent = *stack_.back();
    if (parent.size() >= limits_.items_max) {
      Fail("invalid_json", "an array or object has more than " + std::to_string(limits_.items_max) + " items");
      return nullptr;
    }
    if (parent.is_object()) return &parent[key_];
    parent.push_back(nullptr);
    return &parent.back();
  }

  bool Add(json value) {
    json* place = Place();
    if (place == nullptr) return false;
    *place = std::move(value);
    return true;
  }

  bool Open(json container) {
    if (stack_.size() >= limits_.depth_max) {
      return Fail("invalid_json", "values are nested deeper than " + std::to_string(limits_.depth_max));
    }
    json* place = Place();
    if (place == nullptr) return false;
    *place = std::move(container);
    stack_.push_back(place);
    return true;
  }

  bool Close() {
    stack_.pop_back();
    return true;
  }

  const JsonTextLimits& limits_;
  json& root_;
  std::vector<json*> stack_;  // Of open containers; a parent does not grow while its child is open.
  std::string key_;
  std::optional<size_t> byte_;
};

// Counts what the parser has read, so that an error of Builder can say where it is.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, const char** furthest) : at_(at), furthest_(furthest) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    *furthest_ = ++at_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** furthest_;
};

}  // namespace

std::optional<JsonError> ParseJson(std::string_view text, const JsonTextLimits& limits, json& value) {
  const auto failed = [](std::string code, std::string why, size_t byte) {
    return JsonError{std::move(code), "Invalid JSON at byte " + std::to_string(byte) + ": " + why + ".", byte};
  };
  if (text.size() > limits.bytes_max) {
    return failed("invalid_json", "the text is longer than " + std::to_string(limits.bytes_max) + " bytes",
                  limits.bytes_max);
  }
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return failed("invalid_utf8", "there is a NUL byte", nul);
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return failed("invalid_utf8", "the bytes are not UTF-8", bad);
  }
  value = json();
  Builder builder(limits, value);
  const char* furthest = text.data();
  if (json::sax_parse(CountingIterator(text.data(), &furthest), CountingIterator(text.data() + text.size(), &furthest),
                      &builder)) {
    return std::nullopt;
  }
  value = json();
  const size_t read = static_cast<size_t>(furthest - text.data());
  return failed(builder.error->code, builder.error->message, builder.located() ? builder.byte() : read);
}

}  // namespace quicksilver
