#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "coordinator/text/marked_text.h"

namespace quicksilver::jinja {

// Python's str methods on marked text; every byte that comes out keeps its mark. Indices count bytes.

enum class Side { kBoth, kLeft, kRight };

/// Without `chars`, white space goes.
MarkedText Strip(const MarkedText& text, const std::string_view* chars, Side side);

/// At most `cuts_max` cuts, from the left or from the right; negative: no limit. Requires: `separator` is not empty.
std::vector<MarkedText> Split(const MarkedText& text, std::string_view separator, int64_t cuts_max, bool from_right);

/// At runs of white space, which also go at both ends.
std::vector<MarkedText> SplitAtSpaces(const MarkedText& text);

/// Requires: `from` is not empty.
MarkedText Replace(const MarkedText& text, std::string_view from, const MarkedText& to, int64_t count_max);

enum class Case { kLower, kUpper, kTitle, kCapitalize };
MarkedText ChangeCase(const MarkedText& text, Case to);

/// text[start:stop:step] by code points, bounds already resolved: start, start + step, … while short of stop.
MarkedText Slice(const MarkedText& text, int64_t start, int64_t stop, int64_t step);

}  // namespace quicksilver::jinja
