#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace quicksilver {

/// Text that remembers which of its bytes are content (a client's words) and which are literal (the template's own).
/// Special tokens are only ever read from literal bytes, so everything that copies text must copy the marks.
class MarkedText {
 public:
  struct Range {
    size_t begin = 0;
    size_t end = 0;
    bool operator==(const Range&) const = default;
  };

  MarkedText() = default;
  static MarkedText Literal(std::string text);
  static MarkedText Content(std::string text);

  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }
  /// Byte ranges of content: ascending, neither empty nor touching.
  const std::vector<Range>& content() const { return content_; }

  void Append(const MarkedText& tail);
  void AppendLiteral(std::string_view tail) { text_.append(tail); }
  /// Bytes [begin, end). Requires: begin <= end <= size().
  MarkedText Substring(size_t begin, size_t end) const;
  /// Maximal runs of literal bytes, ascending.
  std::vector<Range> LiteralRanges() const;

 private:
  void MarkContent(size_t begin, size_t end);

  std::string text_;
  std::vector<Range> content_;
};

}  // namespace quicksilver
