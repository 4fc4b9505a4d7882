#include "worker/decoding/procedures/sub_block.h"

#include <algorithm>

#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

void SubBlock::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  const PositionRange open = OpenRange(view);
  int32_t p = open.first;
  while (p < open.end && !IsMasked(view, p)) ++p;
  const int32_t part = (p - view.first) / settings_.length;
  const int32_t end = std::min(open.end, view.first + (part + 1) * settings_.length);
  for (; p < end; ++p) {
    if (IsMasked(view, p)) rows.push_back({p});
  }
}

Decision SubBlock::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  std::vector<float> rank;
  for (const RowChoice& choice : numbers.choices) rank.push_back(choice.confidence);
  std::vector<uint8_t> written(rows.size());
  Decision decision;
  MarkAbove(rank, settings_.threshold, 1, written);
  decision.paced = MarkBest(rank, view.commits_min, written);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (written[i] != 0) decision.writes.push_back(WriteOf(rows[i].position, numbers.choices[i]));
  }
  return decision;
}

}  // namespace quicksilver
