#pragma once

#include <cstddef>
#include <string_view>

namespace quicksilver {

/// The bytes of the well-formed character at the front of `text` (Unicode standard, 3.9 D92: no overlong forms, no
/// surrogates, nothing above U+10FFFF), or 0. Requires: not empty.
size_t Utf8CharacterLength(std::string_view text);

/// The position of the first byte that is not part of well-formed UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view text);

}  // namespace quicksilver
