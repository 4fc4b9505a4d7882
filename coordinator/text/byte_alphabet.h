#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quicksilver {

/// The visible characters that byte-level vocabularies write for the 256 bytes: printable Latin-1 stands for itself,
/// the others, in ascending order, for U+0100 and on.
char32_t AlphabetCharacter(unsigned char byte);

/// The bytes that a vocabulary entry spells in that alphabet; none when it has any other character.
/// Requires: `entry` is valid UTF-8.
std::optional<std::string> BytesOfEntry(std::string_view entry);

}  // namespace quicksilver
