#include "coordinator/text/jinja_lexer.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/utf8.h"

namespace quicksilver::jinja {
namespace {

using Kind = Token::Kind;

constexpr size_t kTokensMax = 200'000;
constexpr size_t kBracketsMax = 128;

// Line ends become "\n"; one at the end of the template goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text.push_back('\n');
      if (source.substr(i + 1, 1) == "\n") ++i;
    } else {
      text.push_back(source[i]);
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

size_t SkipSpaces(std::string_view text, size_t at) {
  while (at < text.size()) {
    const CodePoint c = CodePointAt(text, at);
    if (!IsPythonSpace(c.value)) break;
    at += c.length;
  }
  return at;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeNewlines(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(TextAndTag());
    tokens_.push_back({Kind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  absl::Status TextAndTag();
  absl::Status Comment();
  absl::Status Expression(Kind end);
  bool TakeEnd(Kind end);
  absl::Status NextToken();
  absl::Status String(char quote);
  absl::Status Escape(std::string& out);
  absl::Status Number();
  absl::Status Operator();

  std::string_view Rest() const { return std::string_view(source_).substr(at_); }
  bool At(std::string_view text) const { return Rest().starts_with(text); }

  void Advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + to, '\n'));
    at_ = to;
  }

  absl::Status Emit(Kind kind, std::string text, int line) {
    if (tokens_.size() >= kTokensMax) return ErrorAt(line, "the template is too long");
    tokens_.push_back({kind, std::move(text), line});
    return absl::OkStatus();
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;  // The last tag, with what it took along, ended a line.
  std::string open_brackets_;  // Closers still due, innermost last.
  std::vector<Token> tokens_;
};

size_t FindTag(std::string_view text, size_t from) {
  for (size_t at = text.find('{', from); at != std::string_view::npos; at = text.find('{', at + 1)) {
    const std::string_view next = text.substr(at + 1, 1);
    if (next == "{" || next == "%" || next == "#") return at;
  }
  return text.size();
}

// What lstrip_blocks leaves of the text before a tag.
std::string_view StripLineStart(std::string_view text, bool at_line_start) {
  const size_t newline = text.rfind('\n');
  if (newline == std::string_view::npos && !at_line_start) return text;
  const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
  return SkipSpaces(text, line_start) == text.size() ? text.substr(0, line_start) : text;
}

std::string_view StripEnd(std::string_view text) {
  size_t kept = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = CodePointAt(text, at);
    at += c.length;
    if (!IsPythonSpace(c.value)) kept = at;
  }
  return text.substr(0, kept);
}

absl::Status Lexer::TextAndTag() {
  const size_t tag = FindTag(source_, at_);
  std::string_view text = std::string_view(source_).substr(at_, tag - at_);
  const int text_line = line_;
  const char opener = tag < source_.size() ? source_[tag + 1] : '\0';
  const std::string_view sign = std::string_view(source_).substr(std::min(tag + 2, source_.size()), 1);
  const bool has_sign = opener != '\0' && (sign == "-" || sign == "+");
  if (has_sign && sign == "-") {
    text = StripEnd(text);
  } else if (opener != '\0' && opener != '{' && !has_sign) {
    text = StripLineStart(text, at_line_start_);
  }
  if (!text.empty()) RETURN_IF_ERROR(Emit(Kind::kText, std::string(text), text_line));
  Advance(tag);
  if (opener == '\0') return absl::OkStatus();
  const int tag_line = line_;
  Advance(tag + 2 + (has_sign ? 1 : 0));
  if (opener == '#') return Comment();
  RETURN_IF_ERROR(Emit(opener == '%' ? Kind::kBlockBegin : Kind::kVariableBegin, "", tag_line));
  return Expression(opener == '%' ? Kind::kBlockEnd : Kind::kVariableEnd);
}

absl::Status Lexer::Comment() {
  const size_t close = source_.find("#}", at_);
  if (close == std::string::npos) return ErrorAt(line_, "a comment has no end");
  const char sign = close > at_ ? source_[close - 1] : '\0';
  size_t end = close + 2;
  if (sign == '-') {
    end = SkipSpaces(source_, end);
  } else if (sign != '+' && source_.compare(end, 1, "\n") == 0) {
    ++end;
  }
  Advance(end);
  at_line_start_ = source_[end - 1] == '\n';
  return absl::OkStatus();
}

absl::Status Lexer::Expression(Kind end) {
  const int begin_line = line_;
  open_brackets_.clear();
  while (at_ < source_.size()) {
    if (open_brackets_.empty() && TakeEnd(end)) return Emit(end, "", line_);
    const size_t token = SkipSpaces(source_, at_);
    if (token > at_) {
      Advance(token);
      continue;
    }
    RETURN_IF_ERROR(NextToken());
  }
  return ErrorAt(begin_line, "a tag has no end");
}

bool Lexer::TakeEnd(Kind end) {
  const std::string_view closer = end == Kind::kBlockEnd ? "%}" : "}}";
  size_t to = at_;
  if (At(std::string("-").append(closer))) {
    to = SkipSpaces(source_, at_ + 3);
  } else if (end == Kind::kBlockEnd && At("+%}")) {
    to = at_ + 3;
  } else if (At(closer)) {
    to = at_ + 2;
    if (end == Kind::kBlockEnd && source_.compare(to, 1, "\n") == 0) ++to;
  } else {
    return false;
  }
  Advance(to);
  at_line_start_ = source_[to - 1] == '\n';
  return true;
}

absl::Status Lexer::NextToken() {
  const char c = source_[at_];
  if (c == '\'' || c == '"') return String(c);
  if (IsDigit(c)) return Number();
  if (!IsNameStart(c)) return Operator();
  size_t end = at_;
  while (end < source_.size() && IsNamePart(source_[end])) ++end;
  RETURN_IF_ERROR(Emit(Kind::kName, source_.substr(at_, end - at_), line_));
  Advance(end);
  return absl::OkStatus();
}

absl::Status Lexer::String(char quote) {
  const int line = line_;
  std::string value;
  Advance(at_ + 1);
  while (at_ < source_.size() && source_[at_] != quote) {
    if (source_[at_] == '\\') {
      RETURN_IF_ERROR(Escape(value));
    } else {
      value.push_back(source_[at_]);
      Advance(at_ + 1);
    }
  }
  if (at_ == source_.size()) return ErrorAt(line, "a string has no end");
  Advance(at_ + 1);
  return Emit(Kind::kString, std::move(value), line);
}

std::optional<char> SimpleEscape(char c) {
  switch (c) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case 'a':
      return '\a';
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'v':
      return '\v';
    case '\\':
    case '\'':
    case '"':
      return c;
    default:
      return std::nullopt;
  }
}

// As Python's unicode-escape: an unknown escape keeps its backslash.
absl::Status Lexer::Escape(std::string& out) {
  const char c = at_ + 1 < source_.size() ? source_[at_ + 1] : '\0';
  if (const std::optional<char> simple = SimpleEscape(c); simple.has_value()) {
    out.push_back(*simple);
    Advance(at_ + 2);
    return absl::OkStatus();
  }
  if (c == '\n') {
    Advance(at_ + 2);
    return absl::OkStatus();
  }
  if (IsDigit(c) || c == 'N') return ErrorAt(line_, "octal and named string escapes are not supported");
  if (c != 'x' && c != 'u' && c != 'U') {
    out.push_back('\\');
    Advance(at_ + 1);
    return absl::OkStatus();
  }
  const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
  const std::string hex = source_.substr(std::min(at_ + 2, source_.size()), digits);
  uint32_t value = 0;
  const auto parsed = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
  if (hex.size() < digits || parsed.ec != std::errc() || parsed.ptr != hex.data() + hex.size()) {
    return ErrorAt(line_, "a string escape lacks hexadecimal digits");
  }
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
    return ErrorAt(line_, "a string escape is no Unicode character");
  }
  AppendUtf8(value, out);
  Advance(at_ + 2 + digits);
  return absl::OkStatus();
}

absl::Status Lexer::Number() {
  size_t end = at_;
  const auto digits = [&] {
    while (end < source_.size() && IsDigit(source_[end])) ++end;
  };
  digits();
  Kind kind = Kind::kInteger;
  if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
    kind = Kind::kFloat;
    ++end;
    digits();
  }
  if (end < source_.size() && IsNamePart(source_[end])) {
    return ErrorAt(line_, "only plain decimal numbers are supported");
  }
  RETURN_IF_ERROR(Emit(kind, source_.substr(at_, end - at_), line_));
  Advance(end);
  return absl::OkStatus();
}

absl::Status Lexer::Operator() {
  static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                    ">",  "<",  "=",  ".",  ":",  "|",  ","};
  for (const std::string_view op : kOperators) {
    if (!At(op)) continue;
    if (op == "(" || op == "[" || op == "{") {
      if (open_brackets_.size() == kBracketsMax) return ErrorAt(line_, "brackets are nested too deep");
      open_brackets_.push_back(op == "(" ? ')' : op == "[" ? ']' : '}');
    } else if (op == ")" || op == "]" || op == "}") {
      if (open_brackets_.empty() || open_brackets_.back() != op[0]) {
        return ErrorAt(line_, absl::StrFormat("unexpected '%s'", op));
      }
      open_brackets_.pop_back();
    }
    RETURN_IF_ERROR(Emit(Kind::kOperator, std::string(op), line_));
    Advance(at_ + op.size());
    return absl::OkStatus();
  }
  const size_t length = CodePointAt(source_, at_).length;
  return ErrorAt(line_, absl::StrFormat("unexpected character '%s'", source_.substr(at_, length)));
}

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) { return Lexer(source).Run(); }

absl::Status ErrorAt(int line, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrFormat("line %d: %s", line, why));
}

}  // namespace quicksilver::jinja
