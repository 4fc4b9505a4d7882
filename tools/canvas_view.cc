#include "tools/canvas_view.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <cstdint>

namespace quicksilver {
namespace {

constexpr const char* kReset = "\x1b[0m";
constexpr const char* kBright = "\x1b[1m";
constexpr const char* kDim = "\x1b[2m";
constexpr const char* kShade = "\xE2\x96\x91";  // U+2591
constexpr int kTabColumns = 4;

size_t CharacterBytes(std::string_view text) {
  const unsigned char lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(length, text.size());
}

int32_t CodePoint(std::string_view text) {
  const unsigned char lead = static_cast<unsigned char>(text[0]);
  if (text.size() == 1) return lead;
  int32_t point = lead & (0x7F >> text.size());
  for (size_t i = 1; i < text.size(); ++i) point = (point << 6) | (static_cast<unsigned char>(text[i]) & 0x3F);
  return point;
}

const char* Style(SpanLook look) { return look == SpanLook::kFinal ? kBright : kDim; }

}  // namespace

int CharacterColumns(std::string_view text) {
  const int32_t point = CodePoint(text);
  const int type = u_charType(point);
  if (type == U_NON_SPACING_MARK || type == U_ENCLOSING_MARK || type == U_FORMAT_CHAR || type == U_CONTROL_CHAR)
    return 0;
  const int width = u_getIntPropertyValue(point, UCHAR_EAST_ASIAN_WIDTH);
  return width == U_EA_WIDE || width == U_EA_FULLWIDTH ? 2 : 1;
}

CanvasView::CanvasView(int columns, int rows) : columns_(std::max(columns, 8)), rows_(std::max(rows, 4)) {}

std::vector<std::string> CanvasView::Wrap(const std::vector<ViewSpan>& spans) const {
  std::vector<std::string> lines(1);
  int column = 0;
  const auto put = [&](std::string_view bytes, int width, SpanLook look) {
    if (column + width > columns_) {
      lines.back() += kReset;
      lines.emplace_back(Style(look));
      column = 0;
    }
    lines.back() += bytes;
    column += width;
  };
  for (const ViewSpan& span : spans) {
    lines.back() += Style(span.look);
    if (span.look == SpanLook::kMasked) {
      for (int i = 0; i < span.tokens; ++i) put(kShade, 1, span.look);
    }
    std::string_view rest = span.look == SpanLook::kMasked ? std::string_view() : span.text;
    while (!rest.empty()) {
      const std::string_view character = rest.substr(0, CharacterBytes(rest));
      rest.remove_prefix(character.size());
      if (character == "\n") {
        lines.back() += kReset;
        lines.emplace_back(Style(span.look));
        column = 0;
      } else if (character == "\t") {
        put(std::string(kTabColumns, ' '), kTabColumns, span.look);
      } else if (static_cast<unsigned char>(character[0]) >= 0x20 && character[0] != 0x7F) {
        // Other control characters are left out: model output must not steer the terminal.
        put(character, CharacterColumns(character), span.look);
      }
    }
    lines.back() += kReset;
  }
  return lines;
}

std::string CanvasView::Erase() const {
  if (drawn_ == 0) return "";
  std::string bytes = "\r";
  if (drawn_ > 1) bytes += "\x1b[" + std::to_string(drawn_ - 1) + "A";
  return bytes + "\x1b[J";
}

std::string CanvasView::Draw(const std::vector<ViewSpan>& spans) {
  std::vector<std::string> lines = Wrap(spans);
  const size_t shown = std::min(lines.size(), static_cast<size_t>(rows_ - 1));
  std::string bytes = Erase();
  for (size_t i = lines.size() - shown; i < lines.size(); ++i) {
    if (i != lines.size() - shown) bytes += "\n";
    bytes += lines[i];
  }
  drawn_ = static_cast<int>(shown);
  return bytes;
}

std::string CanvasView::Finish(const std::vector<ViewSpan>& spans) {
  std::string bytes = Erase();
  for (const std::string& line : Wrap(spans)) bytes += line + "\n";
  drawn_ = 0;
  return bytes;
}

}  // namespace quicksilver
