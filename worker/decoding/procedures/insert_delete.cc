#include "worker/decoding/procedures/insert_delete.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace quicksilver {

void InsertDelete::OpenBlock(const CanvasView& view) {
  open_ = OpenRange(view);
  movable_first_ = open_.first;
  steps_ = post_steps_ = 0;
  rows_.clear();
  seen_.clear();
  tried_.clear();
  for (int32_t p = open_.first; p < open_.end; ++p) {
    rows_.push_back({view.tokens[static_cast<size_t>(p)], IsMasked(view, p)});
    if (!IsFree(view, p)) movable_first_ = p + 1;
  }
}

void InsertDelete::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  for (int32_t p = open_.first; p < open_.end; ++p) {
    if (IsFree(view, p)) rows.push_back({p});
  }
}

void InsertDelete::TakeNextBest(const std::set<TokenId>& refused, Proposal& row) const {
  for (const TopLogit& top : row.tops) {
    if (top.id < 0) return;
    if (refused.count(top.id) > 0) continue;
    const double log_probability = std::min(static_cast<double>(top.logit) - row.log_sum_exp, 0.0);
    row.token = top.id;
    row.log_probability = static_cast<float>(log_probability);
    row.confidence = static_cast<float>(std::exp(log_probability));
    return;
  }
}

InsertDelete::Step InsertDelete::Propose(const CanvasView& view, const StepNumbers& numbers) const {
  Step step;
  step.proposals.resize(rows_.size());
  step.movable_first = view.commits_min > 0 ? open_.end : movable_first_;
  const std::vector<RowAsk> asked = AskedRows(*this, view, numbers);
  for (size_t i = 0; i < asked.size(); ++i) {
    const RowChoice& choice = numbers.choices[i];
    Proposal& row = step.proposals[static_cast<size_t>(asked[i].position - open_.first)];
    row.free = true;
    row.token = choice.token;
    row.confidence = choice.confidence;
    row.log_probability = choice.log_probability;
    row.log_sum_exp = choice.log_sum_exp;
    row.tops = numbers.tops.subspan(i * kTopReportedMax, kTopReportedMax);
    if (!IsControl(row.token) || asked[i].position >= step.movable_first) continue;
    step.paced = step.paced || asked[i].position >= movable_first_;
    TakeNextBest(Controls(), row);
  }
  return step;
}

// While original masks are left, one of them is resolved at least: more masks are written than were introduced.
void InsertDelete::SelectMasks(const CanvasView& view, Step& step) const {
  std::vector<size_t> masked;
  std::vector<float> rank;
  int32_t original = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i].token != view.mask_id) continue;
    masked.push_back(i);
    rank.push_back(step.proposals[i].confidence);
    original += rows_[i].original ? 1 : 0;
  }
  const int32_t all = static_cast<int32_t>(masked.size());
  std::vector<uint8_t> written(masked.size(), step.is_final || original == 0 ? 1 : 0);
  MarkAbove(rank, settings_.threshold, all - original + 1, written);
  step.paced = MarkBest(rank, view.commits_min, written) || step.paced;
  if (settings_.post_steps_max == 0 && original > 0) {
    // The step that resolves the last original mask is the last one.
    bool resolved = true;
    for (size_t i = 0; i < masked.size(); ++i) resolved = resolved && (written[i] != 0 || !rows_[masked[i]].original);
    if (resolved) {
      step.is_final = true;
      written.assign(written.size(), 1);
    }
  }
  for (size_t i = 0; i < masked.size(); ++i) step.proposals[masked[i]].written = written[i] != 0;
}

void InsertDelete::SelectEdits(const CanvasView& view, Step& step) const {
  if (!settings_.edit_threshold.has_value()) return;
  for (size_t i = 0; i < rows_.size(); ++i) {
    Proposal& row = step.proposals[i];
    if (!row.free || rows_[i].token == view.mask_id) continue;
    row.written = row.confidence > *settings_.edit_threshold && row.token != rows_[i].token;
  }
}

void InsertDelete::BreakLoop(Step& step) {
  std::vector<TokenId> block;
  for (const Row& row : rows_) block.push_back(row.token);
  if (seen_.insert(block).second || step.is_final) return;
  Proposal* least = nullptr;
  size_t least_index = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    Proposal& row = step.proposals[i];
    if (!row.written || row.token == rows_[i].token) continue;
    if (least != nullptr && row.confidence >= least->confidence) continue;
    least = &row;
    least_index = i;
  }
  if (least == nullptr) return;
  const int32_t position = open_.first + static_cast<int32_t>(least_index);
  std::set<TokenId> refused = tried_[position];
  if (position < step.movable_first) refused.merge(Controls());
  TakeNextBest(refused, *least);
}

std::vector<InsertDelete::Row> InsertDelete::Rewritten(const CanvasView& view, const Step& step) const {
  std::vector<Row> rows;
  const Row introduced = {view.mask_id, false};
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Proposal& row = step.proposals[i];
    if (!row.written) {
      rows.push_back(rows_[i]);
    } else if (row.token == settings_.insert_id) {
      rows.push_back(introduced);
      rows.push_back(rows_[i]);
    } else if (row.token != settings_.delete_id) {
      rows.push_back({row.token, false, row.confidence, row.log_probability});
    }
  }
  rows.resize(rows_.size(), introduced);
  return rows;
}

Decision InsertDelete::Decide(const CanvasView& view, const StepNumbers& numbers) {
  Step step = Propose(view, numbers);
  const bool resolved = std::none_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.original; });
  ++steps_;
  if (resolved) ++post_steps_;
  step.is_final = (resolved && post_steps_ >= settings_.post_steps_max) ||
                  steps_ > view.end - view.first + settings_.post_steps_max;
  SelectMasks(view, step);
  SelectEdits(view, step);
  Decision decision;
  const auto is_written = [](const Proposal& row) { return row.written; };
  if (std::none_of(step.proposals.begin(), step.proposals.end(), is_written)) return decision;
  BreakLoop(step);
  for (size_t i = 0; i < rows_.size(); ++i) {
    Proposal& row = step.proposals[i];
    if (!row.written) continue;
    if (step.is_final && IsControl(row.token)) TakeNextBest(Controls(), row);
    tried_[open_.first + static_cast<int32_t>(i)].insert(row.token);
  }
  const std::vector<Row> rows = Rewritten(view, step);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].token == rows_[i].token) continue;
    decision.writes.push_back(
        {open_.first + static_cast<int32_t>(i), rows[i].token, rows[i].confidence, rows[i].log_probability});
  }
  rows_ = rows;
  decision.keep_open = !step.is_final && view.commits_min == 0;
  decision.paced = step.paced || (!step.is_final && view.commits_min > 0);
  return decision;
}

}  // namespace quicksilver
