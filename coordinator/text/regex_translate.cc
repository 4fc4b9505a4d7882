#include <algorithm>
#include <cctype>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/regex.h"

namespace quicksilver {
namespace {

// PCRE2's \s has U+180E, and its \w lacks marks and connectors.
constexpr std::string_view kSpaces =
    "\\t-\\r\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr std::string_view kWord = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        RETURN_IF_ERROR(ClassCharacter(c));
      } else if (c == '[') {
        OpenClass();
      } else if (c == '(') {
        RETURN_IF_ERROR(OpenGroup());
      } else {
        RETURN_IF_ERROR(PlainCharacter(c));
      }
    }
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrFormat("pattern \"%s\": %s at byte %d is not supported", pattern_, what, at_));
  }

  void Copy(size_t count) {
    out_.append(pattern_.substr(at_, count));
    at_ += count;
  }

  void OpenClass() {
    in_class_ = true;
    Copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == '^') Copy(1);
    // Both dialects read a ']' in first place as a plain character.
    if (at_ < pattern_.size() && pattern_[at_] == ']') Copy(1);
  }

  absl::Status ClassCharacter(char c) {
    if (c == '[') return Refuse("a class inside a class");
    if (pattern_.substr(at_, 2) == "&&") return Refuse("the class intersection &&");
    if (c == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  // Inline options: (?m) and (?s) mean different things in the two dialects.
  absl::Status OpenGroup() {
    Copy(1);
    if (pattern_.substr(at_, 1) != "?") return absl::OkStatus();
    for (size_t i = at_ + 1; i < pattern_.size() && (std::isalpha(pattern_[i]) || pattern_[i] == '-'); ++i) {
      if (pattern_[i] != 'i' && pattern_[i] != 'x' && pattern_[i] != '-') return Refuse("this inline option");
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status PlainCharacter(char c) {
    if (c == '}' && pattern_.substr(at_, 2) == "}+") return Refuse("'+' after a counted repeat");
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (at_ + 1 == pattern_.size()) return Refuse("a lone backslash");
    const char c = pattern_[at_ + 1];
    const bool is_set = c == 's' || c == 'w';
    if (in_class_ && is_set && TouchesHyphen()) return Refuse("a range that ends in a class");
    switch (c) {
      case 's':
        return Replace(in_class_ ? std::string(kSpaces) : Bracketed("[", kSpaces));
      case 'w':
        return Replace(in_class_ ? std::string(kWord) : Bracketed("[", kWord));
      case 'S':
      case 'W':
        if (in_class_) return Refuse("a negated class inside a class");
        return Replace(Bracketed("[^", c == 'S' ? kSpaces : kWord));
      case 'v':
        return Replace("\\x0B");
      case 'u':
        return UnicodeEscape();
      case 'p':
      case 'P':
      case 'x':
        Copy(2);
        if (pattern_.substr(at_, 1) == "{") Copy(std::min(pattern_.find('}', at_), pattern_.size() - 1) + 1 - at_);
        return absl::OkStatus();
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'A':
      case 'z':
        Copy(2);
        return absl::OkStatus();
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) return Refuse("this escape");
        Copy(2);
        return absl::OkStatus();
    }
  }

  // "[\\s-x]": spelled out, the set's last member would begin a range.
  bool TouchesHyphen() const {
    const bool before = at_ >= 2 && pattern_[at_ - 1] == '-' && pattern_[at_ - 2] != '[' && pattern_[at_ - 2] != '\\';
    const bool after = pattern_.substr(at_ + 2, 1) == "-" && pattern_.substr(at_ + 3, 1) != "]";
    return before || after;
  }

  static std::string Bracketed(std::string_view open, std::string_view members) {
    return std::string(open).append(members).append("]");
  }

  absl::Status Replace(std::string with) {
    out_.append(with);
    at_ += 2;
    return absl::OkStatus();
  }

  absl::Status UnicodeEscape() {
    const std::string_view digits = pattern_.substr(at_ + 2, 4);
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      return Refuse("this \\u escape");
    }
    out_.append("\\x{").append(digits).append("}");
    at_ += 6;
    return absl::OkStatus();
  }

  std::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern) { return Translator(pattern).Run(); }

}  // namespace quicksilver
