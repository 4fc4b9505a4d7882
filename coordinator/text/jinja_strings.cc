#include "coordinator/text/jinja_strings.h"

#include <unicode/bytestream.h>
#include <unicode/casemap.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <string>
#include <utility>

#include "coordinator/text/utf8.h"

namespace quicksilver::jinja {
namespace {

bool Strips(std::string_view text, size_t at, const std::string_view* chars) {
  const CodePoint c = CodePointAt(text, at);
  if (chars == nullptr) return IsPythonSpace(c.value);
  return chars->find(text.substr(at, c.length)) != std::string_view::npos;
}

std::string MapCase(std::string_view text, Case to) {
  std::string mapped;
  icu::StringByteSink<std::string> sink(&mapped);
  UErrorCode error = U_ZERO_ERROR;
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  if (to == Case::kLower) {
    icu::CaseMap::utf8ToLower("", 0, piece, sink, nullptr, error);
  } else {
    icu::CaseMap::utf8ToUpper("", 0, piece, sink, nullptr, error);
  }
  return U_SUCCESS(error) ? mapped : std::string(text);
}

// Title and capitalized text: a letter's case hangs on the one before it, so across marks too.
std::string MapWords(std::string_view text, Case to, bool& in_word) {
  std::string mapped;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = CodePointAt(text, at);
    const std::string_view character = text.substr(at, c.length);
    at += c.length;
    if (in_word) {
      mapped += MapCase(character, Case::kLower);
    } else {
      AppendUtf8(static_cast<char32_t>(u_totitle(static_cast<UChar32>(c.value))), mapped);
    }
    in_word = to == Case::kCapitalize || u_hasBinaryProperty(static_cast<UChar32>(c.value), UCHAR_CASED);
  }
  return mapped;
}

}  // namespace

MarkedText Strip(const MarkedText& marked, const std::string_view* chars, Side side) {
  const std::string_view text = marked.text();
  size_t begin = 0;
  size_t end = text.size();
  while (side != Side::kRight && begin < end && Strips(text, begin, chars)) begin += CodePointAt(text, begin).length;
  while (side != Side::kLeft && begin < end) {
    size_t last = end - 1;
    while ((static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    if (!Strips(text, last, chars)) break;
    end = last;
  }
  return marked.Substring(begin, end);
}

std::vector<MarkedText> Split(const MarkedText& marked, std::string_view separator, int64_t cuts_max, bool from_right) {
  const std::string_view text = marked.text();
  std::vector<MarkedText> parts;
  size_t begin = 0;
  size_t end = text.size();
  for (int64_t cuts = 0; cuts_max < 0 || cuts < cuts_max; ++cuts) {
    if (from_right) {
      if (end < separator.size()) break;
      const size_t found = text.rfind(separator, end - separator.size());
      if (found == std::string_view::npos) break;
      parts.push_back(marked.Substring(found + separator.size(), end));
      end = found;
    } else {
      const size_t found = text.find(separator, begin);
      if (found == std::string_view::npos) break;
      parts.push_back(marked.Substring(begin, found));
      begin = found + separator.size();
    }
  }
  parts.push_back(marked.Substring(begin, end));
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<MarkedText> SplitAtSpaces(const MarkedText& marked) {
  const std::string_view text = marked.text();
  std::vector<MarkedText> parts;
  size_t begin = 0;
  for (size_t at = 0; at <= text.size();) {
    const CodePoint c = at < text.size() ? CodePointAt(text, at) : CodePoint{' ', 1};
    if (IsPythonSpace(c.value)) {
      if (begin < at) parts.push_back(marked.Substring(begin, at));
      begin = at + c.length;
    }
    at += c.length;
  }
  return parts;
}

MarkedText Replace(const MarkedText& marked, std::string_view from, const MarkedText& to, int64_t count_max) {
  const std::vector<MarkedText> parts = Split(marked, from, count_max, /*from_right=*/false);
  MarkedText result = parts.front();
  for (size_t i = 1; i < parts.size(); ++i) {
    result.Append(to);
    result.Append(parts[i]);
  }
  return result;
}

MarkedText ChangeCase(const MarkedText& marked, Case to) {
  MarkedText result;
  bool in_word = false;
  const auto append = [&](size_t begin, size_t end, bool is_content) {
    const std::string_view part = std::string_view(marked.text()).substr(begin, end - begin);
    std::string mapped = to == Case::kLower || to == Case::kUpper ? MapCase(part, to) : MapWords(part, to, in_word);
    result.Append(is_content ? MarkedText::Content(std::move(mapped)) : MarkedText::Literal(std::move(mapped)));
  };
  size_t at = 0;
  for (const MarkedText::Range& range : marked.content()) {
    append(at, range.begin, false);
    append(range.begin, range.end, true);
    at = range.end;
  }
  append(at, marked.size(), false);
  return result;
}

MarkedText Slice(const MarkedText& marked, int64_t start, int64_t stop, int64_t step) {
  const std::string_view text = marked.text();
  if (step == 1) {
    const size_t begin = OffsetOfCodePoint(text, static_cast<size_t>(start));
    if (stop <= start) return {};
    const size_t length = OffsetOfCodePoint(text.substr(begin), static_cast<size_t>(stop - start));
    return marked.Substring(begin, begin + length);
  }
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += CodePointAt(text, at).length) offsets.push_back(at);
  offsets.push_back(text.size());
  MarkedText result;
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
    result.Append(marked.Substring(offsets[i], offsets[i + 1]));
  }
  return result;
}

}  // namespace quicksilver::jinja
