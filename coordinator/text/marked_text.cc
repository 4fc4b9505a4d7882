#include "coordinator/text/marked_text.h"

#include <algorithm>
#include <utility>

namespace quicksilver {

MarkedText MarkedText::Literal(std::string text) {
  MarkedText result;
  result.text_ = std::move(text);
  return result;
}

MarkedText MarkedText::Content(std::string text) {
  MarkedText result = Literal(std::move(text));
  result.MarkContent(0, result.size());
  return result;
}

void MarkedText::MarkContent(size_t begin, size_t end) {
  if (begin == end) return;
  if (!content_.empty() && content_.back().end == begin) {
    content_.back().end = end;
  } else {
    content_.push_back({begin, end});
  }
}

void MarkedText::Append(const MarkedText& tail) {
  const size_t offset = text_.size();
  text_.append(tail.text_);
  for (const Range& range : tail.content_) MarkContent(offset + range.begin, offset + range.end);
}

MarkedText MarkedText::Substring(size_t begin, size_t end) const {
  MarkedText result = Literal(text_.substr(begin, end - begin));
  auto range = std::partition_point(content_.begin(), content_.end(), [&](const Range& r) { return r.end <= begin; });
  for (; range != content_.end() && range->begin < end; ++range) {
    result.MarkContent(std::max(range->begin, begin) - begin, std::min(range->end, end) - begin);
  }
  return result;
}

std::vector<MarkedText::Range> MarkedText::LiteralRanges() const {
  std::vector<Range> literal;
  size_t at = 0;
  for (const Range& range : content_) {
    if (at < range.begin) literal.push_back({at, range.begin});
    at = range.end;
  }
  if (at < text_.size()) literal.push_back({at, text_.size()});
  return literal;
}

}  // namespace quicksilver
