#include "worker/decoding/procedures/token_edit.h"

#include <algorithm>

#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

void TokenEdit::OpenBlock(const CanvasView& view) {
  static_cast<void>(view);
  post_steps_ = 0;
}

void TokenEdit::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  const PositionRange open = OpenRange(view);
  for (int32_t p = open.first; p < open.end; ++p) {
    if (IsMasked(view, p) || (edits() && IsFree(view, p))) rows.push_back({p});
  }
}

Decision TokenEdit::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  std::vector<size_t> masked;
  std::vector<float> rank;
  std::vector<uint8_t> written(rows.size());
  bool edited = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    const RowChoice& choice = numbers.choices[i];
    const TokenId token = view.tokens[static_cast<size_t>(rows[i].position)];
    if (token == view.mask_id) {
      masked.push_back(i);
      rank.push_back(choice.confidence);
    } else if (choice.token != token && choice.confidence > *settings_.edit_threshold) {
      written[i] = 1;
      edited = true;
    }
  }
  if (masked.empty()) ++post_steps_;
  std::vector<uint8_t> filled(masked.size());
  Decision decision;
  MarkAbove(rank, settings_.threshold, settings_.commits_min, filled);
  decision.paced = MarkBest(rank, view.commits_min, filled);
  for (size_t i = 0; i < masked.size(); ++i) written[masked[i]] = filled[i];
  for (size_t i = 0; i < rows.size(); ++i) {
    if (written[i] != 0) decision.writes.push_back(WriteOf(rows[i].position, numbers.choices[i]));
  }
  const bool goes_on = edits() && post_steps_ < settings_.post_steps_max && (edited || !masked.empty());
  decision.keep_open = goes_on && view.commits_min == 0;
  decision.paced = decision.paced || goes_on != decision.keep_open;
  return decision;
}

}  // namespace quicksilver
