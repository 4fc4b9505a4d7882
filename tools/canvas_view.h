#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quicksilver {

enum class SpanLook { kFinal, kProvisional, kMasked };

/// One run of the answer as it stands: text, or masked positions still to be filled.
struct ViewSpan {
  SpanLook look = SpanLook::kMasked;
  std::string text;  ///< UTF-8; empty when masked.
  int tokens = 0;
};

/// Draws an answer that changes in place on a terminal: final text bright, provisional text dimmed, masked positions as
/// shaded cells. Pure: it returns the bytes to write.
class CanvasView {
 public:
  /// `columns`, `rows`: the terminal's size, at least 8 x 4. Taller answers show their last rows.
  CanvasView(int columns, int rows);

  /// The bytes that replace what the last Draw drew by `spans`.
  std::string Draw(const std::vector<ViewSpan>& spans);

  /// The bytes that leave `spans` on the screen for good, whole, and the cursor below.
  std::string Finish(const std::vector<ViewSpan>& spans);

 private:
  std::vector<std::string> Wrap(const std::vector<ViewSpan>& spans) const;
  std::string Erase() const;

  int columns_;
  int rows_;
  int drawn_ = 0;  // Lines of the last Draw.
};

/// Columns that `text` (one UTF-8 character) takes on a terminal: 0 for combining marks, 2 for wide ones.
int CharacterColumns(std::string_view text);

}  // namespace quicksilver
