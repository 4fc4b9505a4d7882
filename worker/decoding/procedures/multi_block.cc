#include "worker/decoding/procedures/multi_block.h"

#include <algorithm>

namespace quicksilver {

int32_t MultiBlock::ExistingEnd(const CanvasView& view) const {
  PositionRange last = {view.first, std::min(view.end, view.answer_end)};
  while (last.end < view.answer_end) {
    const int32_t length = last.end - last.first;
    const float written = static_cast<float>(length - CountMasks(view, last));
    if (written < settings_.block_add_threshold * static_cast<float>(length)) break;
    last = {last.end, std::min(last.end + settings_.block_length, view.answer_end)};
  }
  return last.end;
}

void MultiBlock::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  const int32_t end = ExistingEnd(view);
  for (int32_t p = OpenRange(view).first; p < end; ++p) {
    if (IsMasked(view, p)) rows.push_back({p});
  }
}

void MultiBlock::EndAtEos(const CanvasView& view, std::vector<TokenWrite>& writes) const {
  std::vector<TokenId> tokens(view.tokens.begin(), view.tokens.begin() + view.answer_end);
  for (const TokenWrite& write : writes) tokens[static_cast<size_t>(write.position)] = write.token;
  const auto is_eos = [this](TokenId id) {
    return std::binary_search(settings_.eos_ids.begin(), settings_.eos_ids.end(), id);
  };
  const auto first = std::find_if(tokens.begin() + OpenRange(view).first, tokens.end(), is_eos);
  if (first == tokens.end()) return;
  const int32_t eos = static_cast<int32_t>(first - tokens.begin());
  std::erase_if(writes, [eos](const TokenWrite& write) { return write.position > eos; });
  for (int32_t p = eos + 1; p < view.answer_end; ++p) {
    if (IsFree(view, p) && view.tokens[static_cast<size_t>(p)] != *first) writes.push_back({p, *first});
  }
}

Decision MultiBlock::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  std::vector<float> rank;
  std::vector<uint8_t> written(rows.size());
  size_t open_rows = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const float entropy = numbers.choices[i].entropy;
    rank.push_back(-entropy);
    written[i] = entropy <= settings_.threshold ? 1 : 0;
    if (rows[i].position < view.end) ++open_rows;
  }
  MarkBest(rank, 1, written);
  const auto of_open = [&](int32_t count) {
    std::vector<uint8_t> open(written.begin(), written.begin() + static_cast<ptrdiff_t>(open_rows));
    const bool more = MarkBest(absl::MakeConstSpan(rank).first(open_rows), count, open);
    std::copy(open.begin(), open.end(), written.begin());
    return more;
  };
  Decision decision;
  of_open(1);
  decision.paced = of_open(view.commits_min);
  for (size_t i = 0; i < rows.size(); ++i) {
    const RowChoice& choice = numbers.choices[i];
    if (written[i] != 0) decision.writes.push_back({rows[i].position, choice.token, rank[i], choice.log_probability});
  }
  EndAtEos(view, decision.writes);
  return decision;
}

}  // namespace quicksilver
