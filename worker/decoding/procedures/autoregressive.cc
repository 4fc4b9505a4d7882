#include "worker/decoding/procedures/autoregressive.h"

#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

void Autoregressive::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  const PositionRange open = OpenRange(view);
  for (int32_t p = open.first; p < open.end; ++p) {
    if (!IsMasked(view, p)) continue;
    rows.push_back({p});
    return;
  }
}

Decision Autoregressive::Decide(const CanvasView& view, const StepNumbers& numbers) {
  Decision decision;
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  decision.writes.push_back(WriteOf(rows[0].position, numbers.choices[0]));
  return decision;
}

}  // namespace quicksilver
