#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver {

/// One thread's working memory for matching; reusable for any Regex, not from inside a match.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

/// A pre-tokenizer's regular expression. tokenizer.json is written for Oniguruma; what PCRE2 reads differently (\s, \w,
/// \v, \uHHHH) is rewritten, and what cannot be is refused. Immutable, thread-safe.
class Regex {
 public:
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  /// Matches exactly `text`.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  /// Cuts `text` into matches and what lies between them, in order, empty pieces left out; stops at the first error.
  /// `text` is valid UTF-8. InvalidArgument: the match limit was reached.
  absl::Status ForEachPiece(std::string_view text, RegexScratch& scratch,
                            absl::FunctionRef<absl::Status(std::string_view piece, bool is_match)> visit) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static absl::StatusOr<Regex> CompileTranslated(const std::string& translated, std::string_view original);

  std::shared_ptr<const Code> code_;
};

/// Oniguruma's syntax to PCRE2's; see Regex. Exposed for tests.
absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern);

}  // namespace quicksilver
