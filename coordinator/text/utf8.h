#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace quicksilver {

struct CodePoint {
  char32_t value = 0;
  size_t length = 0;  ///< In bytes.
};

/// The code point that starts at byte `at`. Requires: `text` is valid UTF-8 and `at` a character's first byte.
CodePoint CodePointAt(std::string_view text, size_t at);

bool IsValidUtf8(std::string_view text);

/// Appends `bytes` to `out`, each maximal ill-formed run replaced by U+FFFD exactly as Python's
/// bytes.decode(errors="replace") does. Unless `final`, a last character that more bytes could still complete is left
/// alone. Returns the bytes used.
size_t AppendReplacingInvalid(std::string_view bytes, bool final, std::string& out);

void AppendUtf8(char32_t code_point, std::string& out);

/// Requires: `text` is valid UTF-8, here and below.
size_t CountCodePoints(std::string_view text);

/// The byte offset of the `index`-th code point; text.size() at and past the end.
size_t OffsetOfCodePoint(std::string_view text, size_t index);

/// What Python's str.isspace() says of one code point; also what `\s` means in its `re`.
bool IsPythonSpace(char32_t c);

/// The Unicode property White_Space.
bool IsWhiteSpace(char32_t c);

}  // namespace quicksilver
