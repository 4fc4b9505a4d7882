#include "tools/bench_serve/dataset.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "coordinator/text/text.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kBytesPerToken = 4;
constexpr size_t kFileBytesMax = size_t{2} * 1024 * 1024 * 1024;
constexpr size_t kLineBytesMax = 8 * 1024 * 1024;
constexpr size_t kTextTokensMax = 4'000'000;

constexpr const char* kWords[] = {"return", "the",  "list",   "value", "count", "of",   "number", "index",
                                  "map",    "sum",  "string", "first", "last",  "even", "odd",    "total",
                                  "sort",   "key",  "item",   "word",  "max",   "min",  "where",  "above",
                                  "below",  "from", "into",   "all",   "each",  "to",   "a",      "is"};

/// Counts tokens with a model's tokenizer, or guesses.
class Counter {
 public:
  static absl::StatusOr<Counter> Make(const std::string& directory) {
    Counter counter;
    if (!directory.empty()) {
      ASSIGN_OR_RETURN(counter.model_, TextModel::Load(directory));
    }
    return counter;
  }

  size_t words_per_token_max() const { return model_ == nullptr ? kBytesPerToken / 2 : 1; }

  absl::StatusOr<size_t> Count(const std::string& text) const {
    if (model_ == nullptr) return (text.size() + kBytesPerToken - 1) / kBytesPerToken;
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, model_->Encode(text, kTextTokensMax));
    return ids.size();
  }

 private:
  std::shared_ptr<const TextModel> model_;  // Null: no tokenizer.
};

/// Words that come to `tokens` tokens, or one less where no word fits.
absl::StatusOr<std::string> RandomText(size_t tokens, const Counter& counter, std::mt19937_64& random) {
  std::vector<std::string> words;
  const auto join = [&](size_t count) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += (i == 0 ? "" : " ") + words[i];
    return text;
  };
  if (tokens == 0) return std::string();
  // As many words as can fit: none is less than a token, or, guessed, less than two bytes with its space.
  std::uniform_int_distribution<size_t> pick(0, std::size(kWords) - 1);
  for (size_t i = 0; i < tokens * counter.words_per_token_max(); ++i) words.emplace_back(kWords[pick(random)]);
  size_t low = 1, high = words.size();  // The most words that are at most `tokens`, by bisection.
  while (low < high) {
    const size_t middle = (low + high + 1) / 2;
    ASSIGN_OR_RETURN(const size_t count, counter.Count(join(middle)));
    if (count <= tokens) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return join(low);
}

absl::StatusOr<std::vector<BenchPrompt>> RandomPrompts(const BenchServeOptions& options, const Counter& counter) {
  std::mt19937_64 random(options.seed);
  const auto draw = [&](uint32_t length) {
    const double spread = options.range_ratio * length;
    const auto low = static_cast<uint32_t>(std::max(1.0, std::floor(length - spread)));
    return std::uniform_int_distribution<uint32_t>(low, static_cast<uint32_t>(std::ceil(length + spread)))(random);
  };
  ASSIGN_OR_RETURN(std::string prefix, RandomText(options.prefix_len, counter, random));
  if (!prefix.empty()) prefix += ' ';
  std::vector<BenchPrompt> prompts;
  for (uint32_t i = 0; i < options.num_prompts; ++i) {
    const uint32_t length = draw(options.input_len);
    ASSIGN_OR_RETURN(const std::string text, RandomText(length, counter, random));
    BenchPrompt prompt{prefix + text, 0, draw(options.output_len)};
    ASSIGN_OR_RETURN(prompt.tokens, counter.Count(prompt.text));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("--dataset-path: '", path, "' cannot be read"));
  const auto size = static_cast<size_t>(std::max<std::streamoff>(file.tellg(), 0));
  if (size > kFileBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", size, " bytes, at most ", kFileBytesMax));
  }
  std::string text(size, '\0');
  file.seekg(0);
  file.read(text.data(), static_cast<std::streamsize>(size));
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

const json* FindString(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || !found->is_string() ? nullptr : &*found;
}

/// The first two turns of each conversation: what was asked, and how long the answer was.
absl::StatusOr<std::vector<BenchPrompt>> ShareGptPrompts(const BenchServeOptions& options, const Counter& counter) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(options.dataset_path));
  json root;
  JsonTextLimits limits;
  limits.bytes_max = kFileBytesMax;
  limits.items_max = 100'000'000;
  if (const auto error = ParseJson(text, limits, root); error.has_value() || !root.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.dataset_path, ": ", error.has_value() ? error->message : "is not a JSON array"));
  }
  std::vector<BenchPrompt> prompts;
  for (const json& entry : root) {
    if (prompts.size() == options.num_prompts) break;
    const auto turns = entry.is_object() ? entry.find("conversations") : entry.end();
    if (!entry.is_object() || turns == entry.end() || !turns->is_array() || turns->size() < 2) continue;
    const json* question = FindString((*turns)[0], "value");
    const json* answer = FindString((*turns)[1], "value");
    if (question == nullptr || answer == nullptr) continue;
    BenchPrompt prompt{question->get<std::string>(), 0, options.output_len};
    ASSIGN_OR_RETURN(prompt.tokens, counter.Count(prompt.text));
    ASSIGN_OR_RETURN(const size_t answered, counter.Count(answer->get<std::string>()));
    if (!options.output_len_given)
      prompt.tokens_max = static_cast<uint32_t>(std::clamp<size_t>(answered, 1, 1'000'000));
    if (prompt.tokens > 0) prompts.push_back(std::move(prompt));
  }
  return prompts;
}

absl::StatusOr<std::vector<BenchPrompt>> CustomPrompts(const BenchServeOptions& options, const Counter& counter) {
  std::ifstream file(options.dataset_path);
  if (!file) return absl::NotFoundError(absl::StrCat("--dataset-path: '", options.dataset_path, "' cannot be read"));
  std::vector<BenchPrompt> prompts;
  std::string line;
  for (size_t number = 1; prompts.size() < options.num_prompts && std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    json entry;
    JsonTextLimits limits;
    limits.bytes_max = kLineBytesMax;
    const auto error = ParseJson(line, limits, entry);
    const json* text = error.has_value() ? nullptr : FindString(entry, "prompt");
    if (text == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(options.dataset_path, ":", number, ": ",
                                                     error.has_value() ? error->message : "no string `prompt`"));
    }
    BenchPrompt prompt{text->get<std::string>(), 0, options.output_len};
    const auto wanted = entry.find("output_tokens");
    if (!options.output_len_given && wanted != entry.end() && wanted->is_number_unsigned()) {
      prompt.tokens_max = static_cast<uint32_t>(std::clamp<uint64_t>(wanted->get<uint64_t>(), 1, 1'000'000));
    }
    ASSIGN_OR_RETURN(prompt.tokens, counter.Count(prompt.text));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

}  // namespace

absl::StatusOr<std::vector<BenchPrompt>> MakePrompts(const BenchServeOptions& options) {
  ASSIGN_OR_RETURN(const Counter counter, Counter::Make(options.tokenizer));
  if (options.dataset == BenchDataset::kRandom) return RandomPrompts(options, counter);
  ASSIGN_OR_RETURN(std::vector<BenchPrompt> prompts, options.dataset == BenchDataset::kShareGpt
                                                         ? ShareGptPrompts(options, counter)
                                                         : CustomPrompts(options, counter));
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(options.dataset_path, ": holds no prompt"));
  const size_t distinct = prompts.size();
  for (size_t i = 0; prompts.size() < options.num_prompts; ++i) prompts.push_back(prompts[i % distinct]);
  return prompts;
}

}  // namespace quicksilver
