#include "worker/decoding/procedures/rows.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {

int32_t BlockSchedule::StepsOf(int32_t block) const {
  if (blocks == 0) return steps;
  return std::max(1, ScheduledCount(steps, blocks, block));
}

int32_t BlockSchedule::steps_max() const { return StepsOf(0); }

PositionRange OpenRange(const CanvasView& view) {
  return {std::max(view.first, view.answer_first), std::min(view.end, view.answer_end)};
}

int32_t CountMasks(const CanvasView& view, PositionRange range) {
  int32_t masks = 0;
  for (int32_t p = range.first; p < range.end; ++p) masks += IsMasked(view, p) ? 1 : 0;
  return masks;
}

std::vector<RowAsk> AskedRows(const Procedure& procedure, const CanvasView& view, const StepNumbers& numbers) {
  std::vector<RowAsk> rows;
  procedure.Ask(view, rows);
  CHECK(rows.size() == numbers.choices.size());
  return rows;
}

bool MarkBest(absl::Span<const float> rank, int32_t count, std::vector<uint8_t>& marked) {
  CHECK(rank.size() == marked.size());
  int64_t missing = count - std::count(marked.begin(), marked.end(), uint8_t{1});
  if (missing <= 0) return false;
  std::vector<size_t> rest;
  for (size_t i = 0; i < rank.size(); ++i) {
    if (marked[i] == 0) rest.push_back(i);
  }
  std::stable_sort(rest.begin(), rest.end(), [rank](size_t a, size_t b) { return rank[a] > rank[b]; });
  missing = std::min(missing, static_cast<int64_t>(rest.size()));
  for (int64_t i = 0; i < missing; ++i) marked[rest[static_cast<size_t>(i)]] = 1;
  return missing > 0;
}

int32_t MarkAbove(absl::Span<const float> rank, float threshold, int32_t count_min, std::vector<uint8_t>& marked) {
  CHECK(rank.size() == marked.size());
  for (size_t i = 0; i < rank.size(); ++i) {
    if (rank[i] > threshold) marked[i] = 1;
  }
  MarkBest(rank, count_min, marked);
  return static_cast<int32_t>(std::count(marked.begin(), marked.end(), uint8_t{1}));
}

void SortWrites(std::vector<TokenWrite>& writes) {
  std::sort(writes.begin(), writes.end(),
            [](const TokenWrite& a, const TokenWrite& b) { return a.position < b.position; });
}

}  // namespace quicksilver
