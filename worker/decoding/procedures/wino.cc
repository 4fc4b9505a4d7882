#include "worker/decoding/procedures/wino.h"

#include <algorithm>

#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

void Wino::OpenBlock(const CanvasView& view) {
  static_cast<void>(view);
  last_written_ = kLastWrittenAtFirst;
}

void Wino::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  const PositionRange open = OpenRange(view);
  for (int32_t p = open.first; p < open.end; ++p) {
    if (IsMasked(view, p)) rows.push_back({p});
  }
  for (int32_t p = open.first; p < open.end; ++p) {
    if (!IsMasked(view, p) && IsFree(view, p)) rows.push_back({p, view.tokens[static_cast<size_t>(p)], true});
  }
}

std::vector<uint8_t> Wino::Accept(absl::Span<const float> rank, int32_t commits_min, bool& paced) const {
  const int32_t masks = static_cast<int32_t>(rank.size());
  const int32_t accepted_max = std::clamp(masks * 7 / 10, 5, 20);
  std::vector<uint8_t> accepted(rank.size());
  if (MarkAbove(rank, settings_.threshold, 1, accepted) > accepted_max) {
    std::fill(accepted.begin(), accepted.end(), uint8_t{0});
    MarkBest(rank, accepted_max, accepted);
  }
  paced = MarkBest(rank, commits_min, accepted);
  return accepted;
}

Decision Wino::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  const size_t masks = static_cast<size_t>(std::count_if(rows.begin(), rows.end(), [](auto& r) { return !r.shadow; }));
  std::vector<float> rank;
  for (size_t i = 0; i < masks; ++i) rank.push_back(numbers.choices[i].confidence);
  Decision decision;
  const std::vector<uint8_t> accepted = Accept(rank, view.commits_min, decision.paced);
  for (size_t i = 0; i < masks; ++i) {
    if (accepted[i] != 0) decision.writes.push_back(WriteOf(rows[i].position, numbers.choices[i]));
  }
  const int32_t written = static_cast<int32_t>(decision.writes.size());
  if (written > 1) {
    std::vector<float> doubt;
    std::vector<uint8_t> verified(rows.size() - masks);
    for (size_t i = masks; i < rows.size(); ++i) doubt.push_back(-numbers.choices[i].asked_probability);
    int32_t doubted = 0;
    for (const float one : doubt) doubted += -one < settings_.verify_threshold ? 1 : 0;
    int32_t masked_max = last_written_ - 1;
    if (view.commits_min > 0) masked_max = std::min(masked_max, written - view.commits_min);
    decision.paced = decision.paced || std::min(doubted, last_written_ - 1) > masked_max;
    MarkBest(doubt, std::min(doubted, masked_max), verified);
    for (size_t i = masks; i < rows.size(); ++i) {
      if (verified[i - masks] == 0) continue;
      const RowChoice& choice = numbers.choices[i];
      decision.writes.push_back({rows[i].position, view.mask_id, choice.asked_probability, 0.0f});
    }
  }
  SortWrites(decision.writes);
  last_written_ = written;
  return decision;
}

}  // namespace quicksilver
