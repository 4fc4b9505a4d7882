#include "coordinator/text/utf8.h"

#include <cstdint>

namespace quicksilver {
namespace {

struct Sequence {
  size_t length = 0;  // Of the character, or of the ill-formed run.
  enum { kValid, kInvalid, kUnfinished } kind = kInvalid;
};

// Length announced by a lead byte; 0 when it can start nothing.
size_t LeadLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// The second byte is narrower after some leads: no overlong forms, no surrogates, nothing above U+10FFFF.
bool IsSecond(uint8_t lead, uint8_t byte) {
  switch (lead) {
    case 0xE0:
      return byte >= 0xA0 && byte <= 0xBF;
    case 0xED:
      return byte >= 0x80 && byte <= 0x9F;
    case 0xF0:
      return byte >= 0x90 && byte <= 0xBF;
    case 0xF4:
      return byte >= 0x80 && byte <= 0x8F;
    default:
      return byte >= 0x80 && byte <= 0xBF;
  }
}

Sequence SequenceAt(std::string_view bytes, size_t at) {
  const uint8_t lead = static_cast<uint8_t>(bytes[at]);
  const size_t length = LeadLength(lead);
  if (length == 0) return {1, Sequence::kInvalid};
  for (size_t i = 1; i < length; ++i) {
    if (at + i == bytes.size()) return {i, Sequence::kUnfinished};
    const uint8_t byte = static_cast<uint8_t>(bytes[at + i]);
    const bool fits = i == 1 ? IsSecond(lead, byte) : (byte & 0xC0) == 0x80;
    if (!fits) return {i, Sequence::kInvalid};
  }
  return {length, Sequence::kValid};
}

}  // namespace

CodePoint CodePointAt(std::string_view text, size_t at) {
  const uint8_t lead = static_cast<uint8_t>(text[at]);
  const size_t length = LeadLength(lead);
  if (length <= 1) return {lead, 1};
  char32_t value = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) value = value << 6 | (static_cast<uint8_t>(text[at + i]) & 0x3F);
  return {value, length};
}

bool IsValidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Sequence sequence = SequenceAt(text, at);
    if (sequence.kind != Sequence::kValid) return false;
    at += sequence.length;
  }
  return true;
}

size_t AppendReplacingInvalid(std::string_view bytes, bool final, std::string& out) {
  size_t at = 0;
  while (at < bytes.size()) {
    const Sequence sequence = SequenceAt(bytes, at);
    if (sequence.kind == Sequence::kUnfinished && !final) break;
    if (sequence.kind == Sequence::kValid) {
      out.append(bytes.substr(at, sequence.length));
    } else {
      out.append("\xEF\xBF\xBD");
    }
    at += sequence.length;
  }
  return at;
}

void AppendUtf8(char32_t c, std::string& out) {
  const auto tail = [&](int shift) { out.push_back(static_cast<char>(0x80 | ((c >> shift) & 0x3F))); };
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | c >> 12));
    tail(6);
    tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | c >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

size_t CountCodePoints(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80;
  return count;
}

size_t OffsetOfCodePoint(std::string_view text, size_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += CodePointAt(text, at).length;
  return at;
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

}  // namespace quicksilver
