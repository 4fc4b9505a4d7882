#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver::jinja {

struct Token {
  enum class Kind {
    kText,  ///< Between the tags, white space control applied.
    kBlockBegin,
    kBlockEnd,
    kVariableBegin,
    kVariableEnd,
    kName,
    kString,  ///< Escapes resolved.
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 1;

  bool Is(Kind k, std::string_view t) const { return kind == k && text == t; }
  bool IsOperator(std::string_view t) const { return Is(Kind::kOperator, t); }
  bool IsName(std::string_view t) const { return Is(Kind::kName, t); }
};

/// Cuts a template as Jinja does with trim_blocks and lstrip_blocks on and keep_trailing_newline off; the last token is
/// kEnd. `source` is valid UTF-8. InvalidArgument names the line.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

/// "line N: why".
absl::Status ErrorAt(int line, std::string_view why);

}  // namespace quicksilver::jinja
