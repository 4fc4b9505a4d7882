#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/regex.h"
#include "nlohmann/json_fwd.hpp"

namespace quicksilver {

/// The "pre_tokenizer" of tokenizer.json: Split, Digits and, last, ByteLevel. Immutable, thread-safe.
class PreTokenizer {
 public:
  using Visit = absl::FunctionRef<absl::Status(std::string_view word)>;

  /// InvalidArgument names an unsupported type or option.
  static absl::StatusOr<PreTokenizer> Parse(const nlohmann::json& spec);

  /// Hands out the words of `text`, valid UTF-8, in order, until `visit` fails; lazily, so a caller that has enough
  /// pays for no more.
  absl::Status ForEachWord(std::string_view text, RegexScratch& scratch, Visit visit) const;

  /// Whether words can leave out bytes of the text.
  bool removes_text() const { return removes_text_; }

 private:
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Stage {
    std::optional<Regex> regex;  // None: one piece.
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    bool add_prefix_space = false;
  };

  absl::Status Add(const nlohmann::json& spec, int depth);
  absl::Status AddSplit(const nlohmann::json& spec);
  absl::Status AddDigits(const nlohmann::json& spec);
  absl::Status AddByteLevel(const nlohmann::json& spec);
  absl::Status RunStage(size_t stage, std::string_view text, RegexScratch& scratch, Visit visit) const;
  static absl::Status SplitBy(const Stage& stage, std::string_view text, RegexScratch& scratch, Visit visit);

  std::vector<Stage> stages_;
  bool byte_level_ = false;
  bool removes_text_ = false;
};

}  // namespace quicksilver
