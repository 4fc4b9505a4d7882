#include "worker/model/families/tokenizer_facts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr size_t kDepthMax = 64;
constexpr size_t kAddedTokensMax = 1 << 16;

/// Watches two places: `model.vocab.*` and `added_tokens[*].{id, content}`.
class FactsReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  TokenizerFacts facts;
  std::string error;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t value) override { return !AtId() || BadId(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return !AtId() || BadId(text); }
  bool binary(binary_t&) override { return true; }
  bool number_unsigned(number_unsigned_t value) override {
    if (!AtId()) return true;
    if (value > static_cast<number_unsigned_t>(INT32_MAX)) return BadId(absl::StrCat(value));
    facts.ids_end = std::max(facts.ids_end, static_cast<int64_t>(value) + 1);
    if (InAddedToken()) token_id_ = static_cast<TokenId>(value);
    return true;
  }
  bool string(string_t& value) override {
    if (InAddedToken() && path_.back() == "content") token_content_ = value;
    return true;
  }
  bool start_object(std::size_t) override {
    if (!Enter()) return false;
    if (InAddedToken()) {
      token_id_ = -1;
      token_content_.clear();
    }
    return true;
  }
  bool end_object() override {
    if (InAddedToken() && token_id_ >= 0 && facts.added_tokens.size() < kAddedTokensMax) {
      facts.added_tokens.emplace(std::move(token_content_), token_id_);
    }
    path_.pop_back();
    return true;
  }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override {
    path_.pop_back();
    return true;
  }
  bool key(string_t& name) override {
    path_.back() = name;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    error = absl::StrCat("expected JSON, found something else at byte ", position);
    return false;
  }

 private:
  bool Enter() {
    path_.emplace_back();
    if (path_.size() <= kDepthMax) return true;
    error = absl::StrCat("expected JSON nested at most ", kDepthMax, " deep, found more");
    return false;
  }
  bool InAddedToken() const { return path_.size() == 3 && path_[0] == "added_tokens"; }
  bool AtId() const {
    return (InAddedToken() && path_.back() == "id") ||
           (path_.size() == 3 && path_[0] == "model" && path_[1] == "vocab");
  }
  bool BadId(const std::string& found) {
    error = absl::StrCat("expected a token id from 0 to ", INT32_MAX, ", found ", found);
    return false;
  }

  std::vector<std::string> path_;  // Key in each open object; empty in an array.
  TokenId token_id_ = -1;
  std::string token_content_;
};

}  // namespace

absl::StatusOr<TokenizerFacts> ReadTokenizerFacts(const std::string& file, const std::string& text) {
  FactsReader reader;
  if (!nlohmann::json::sax_parse(text, &reader)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", reader.error));
  }
  return std::move(reader.facts);
}

}  // namespace quicksilver
