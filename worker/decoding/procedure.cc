#include "worker/decoding/procedure.h"

#include <algorithm>

namespace quicksilver {

void Procedure::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  for (int32_t p = std::max(view.first, view.answer_first); p < std::min(view.end, view.answer_end); ++p) {
    if (view.tokens[static_cast<size_t>(p)] == view.mask_id) rows.push_back({p});
  }
}

}  // namespace quicksilver
