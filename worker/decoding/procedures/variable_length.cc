#include "worker/decoding/procedures/variable_length.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace quicksilver {

bool VariableLength::CanGrow(const CanvasView& view) const {
  return view.commits_min == 0 && view.answer_end - view.answer_first < settings_.length_max;
}

// Nothing of the answer is written, but what the client fixed.
bool VariableLength::IsBlank(const CanvasView& view) const {
  for (int32_t p = view.answer_first; p < view.answer_end; ++p) {
    if (IsFree(view, p) && !IsMasked(view, p)) return false;
  }
  return true;
}

void VariableLength::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  if (view.answer_end - view.answer_first >= settings_.length_max) return Procedure::Ask(view, rows);
  for (int32_t p = view.answer_first; p < view.answer_end; ++p) {
    // What a token is worth by now is told of it when it moves.
    rows.push_back({p, IsMasked(view, p) ? -1 : view.tokens[static_cast<size_t>(p)]});
  }
}

float VariableLength::EosConfidence(const StepNumbers& numbers) const {
  double sum = 0.0;
  int32_t found = 0;
  for (size_t i = numbers.choices.size(); i > 0 && found < settings_.eos_window; --i) {
    const RowChoice& choice = numbers.choices[i - 1];
    TokenId best = choice.token;
    double log_probability = choice.log_probability;
    if (settings_.sampled) {
      const TopLogit& top = numbers.tops[(i - 1) * kTopReportedMax];
      best = top.id;
      log_probability = static_cast<double>(top.logit) - choice.log_sum_exp;
    }
    if (best != settings_.eos_id) continue;
    sum += std::exp(std::min(log_probability, 0.0));
    ++found;
  }
  return static_cast<float>(sum / settings_.eos_window);
}

// `enough`: the answer is as long as it has to be, and only gets its eos tokens.
Decision VariableLength::Lengthen(const CanvasView& view, bool enough) const {
  const int32_t room = settings_.length_max - (view.answer_end - view.answer_first);
  Decision decision;
  decision.grown = std::min(room, enough ? settings_.eos_window / 2 : settings_.expansion);
  if (!enough) return decision;
  for (int32_t p = view.answer_end; p < view.answer_end + decision.grown; ++p) {
    decision.writes.push_back({p, settings_.eos_id});
  }
  return decision;
}

// The masked `position` becomes `expansion` masks: everything behind it moves, and what finds no room is cut off.
void VariableLength::Expand(const CanvasView& view, const StepNumbers& numbers, int32_t position,
                            Decision& decision) const {
  std::vector<TokenWrite> rows;  // Of the answer.
  for (int32_t p = view.answer_first; p < view.answer_end; ++p) {
    if (p >= position && !IsFree(view, p)) return;
    const float asked = numbers.choices[static_cast<size_t>(p - view.answer_first)].asked_probability;
    const float log_probability = std::log(std::max(asked, std::numeric_limits<float>::min()));
    rows.push_back({p, view.tokens[static_cast<size_t>(p)], asked, log_probability});
  }
  for (const TokenWrite& write : decision.writes) rows[static_cast<size_t>(write.position - view.answer_first)] = write;
  const int32_t room = settings_.length_max - (view.answer_end - view.answer_first);
  decision.grown = std::min(room, settings_.expansion - 1);
  const TokenWrite mask = {position, view.mask_id};
  rows.insert(rows.begin() + (position - view.answer_first), static_cast<size_t>(settings_.expansion - 1), mask);
  rows.resize(static_cast<size_t>(view.answer_end - view.answer_first + decision.grown));
  decision.writes.clear();
  int32_t p = view.answer_first;
  for (TokenWrite& row : rows) {
    const TokenId before = p < view.answer_end ? view.tokens[static_cast<size_t>(p)] : view.mask_id;
    row.position = p++;
    if (row.token != before) decision.writes.push_back(row);
  }
}

Decision VariableLength::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  const float eos = CanGrow(view) ? EosConfidence(numbers) : 1.0f;
  if (CanGrow(view) && IsBlank(view)) {
    Decision decision = Lengthen(view, eos >= settings_.eos_threshold);
    if (decision.grown > 0) return decision;
  }
  const PositionRange open = OpenRange(view);
  std::vector<TokenWrite> masked;
  std::vector<float> rank;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t p = rows[i].position;
    if (p < open.first || p >= open.end || !IsMasked(view, p)) continue;
    masked.push_back(WriteOf(p, numbers.choices[i]));
    rank.push_back(numbers.choices[i].confidence);
  }
  std::vector<uint8_t> written(masked.size());
  MarkAbove(rank, settings_.threshold, 1, written);
  Decision decision;
  // A pace lets nothing grow, which it is to be told of.
  decision.paced = MarkBest(rank, view.commits_min, written) || (view.commits_min > 0 && rows.size() > masked.size());
  const TokenWrite* least = nullptr;
  for (size_t i = 0; i < masked.size(); ++i) {
    if (written[i] != 0) {
      decision.writes.push_back(masked[i]);
    } else if (masked[i].confidence < settings_.low_threshold &&
               (least == nullptr || masked[i].confidence < least->confidence)) {
      least = &masked[i];
    }
  }
  if (least != nullptr && CanGrow(view) && eos < settings_.expand_eos_threshold)
    Expand(view, numbers, least->position, decision);
  return decision;
}

}  // namespace quicksilver
