#include "worker/decoding/procedures/renoise.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/check.h"
#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

int32_t Renoise::steps_max(int32_t positions) const {
  static_cast<void>(positions);
  return settings_.steps;
}

TokenId Renoise::NoiseAt(int32_t position, int32_t forward) const {
  const DrawPlace place = {settings_.sampling.seed, settings_.sampling.choice, static_cast<uint32_t>(position),
                           static_cast<uint32_t>(forward)};
  const double draw = UniformDraw(place, 0, DrawPurpose::kNoise) * settings_.vocabulary;
  return std::min(static_cast<TokenId>(draw), settings_.vocabulary - 1);
}

void Renoise::OpenBlock(const CanvasView& view) {
  CHECK(settings_.steps >= 1 && settings_.vocabulary >= 1);
  first_ = view.first;
  input_.clear();
  history_.clear();
  for (int32_t p = view.first; p < view.end; ++p) {
    const size_t of_answer = static_cast<size_t>(p - view.answer_first);
    const bool drafted = of_answer < settings_.draft.size() && settings_.draft[of_answer] >= 0;
    TokenId token = drafted ? settings_.draft[of_answer] : NoiseAt(p, view.forwards);
    if (!IsMasked(view, p)) token = view.tokens[static_cast<size_t>(p)];
    input_.push_back(token);
  }
}

void Renoise::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  for (int32_t p = view.first; p < view.end; ++p) rows.push_back({p});
}

TokenId Renoise::Input(const CanvasView& view, int32_t position) const {
  const int32_t i = position - first_;
  const bool open = first_ == view.first && i >= 0 && i < static_cast<int32_t>(input_.size());
  return open ? input_[static_cast<size_t>(i)] : view.tokens[static_cast<size_t>(position)];
}

float Renoise::Temperature(const CanvasView& view, float requested) const {
  static_cast<void>(requested);
  const float left = static_cast<float>(settings_.steps - view.block_forwards);
  const float low = settings_.temperature_min, high = settings_.temperature_max;
  return low + (high - low) * left / static_cast<float>(settings_.steps);
}

// Every free row gets its draw or new noise, whatever it was before.
void Renoise::AcceptRows(const CanvasView& view, const StepNumbers& numbers) {
  std::vector<size_t> free;
  for (size_t i = 0; i < input_.size(); ++i) {
    if (IsMasked(view, first_ + static_cast<int32_t>(i))) free.push_back(i);
  }
  std::stable_sort(free.begin(), free.end(),
                   [&](size_t a, size_t b) { return numbers.choices[a].entropy < numbers.choices[b].entropy; });
  double before = 0.0;
  for (const size_t i : free) {
    const bool accepted = before <= static_cast<double>(settings_.entropy_bound);
    before += static_cast<double>(numbers.choices[i].entropy);
    const int32_t position = first_ + static_cast<int32_t>(i);
    input_[i] = accepted ? numbers.choices[i].token : NoiseAt(position, view.forwards + 1);
  }
}

bool Renoise::IsStable(const CanvasView& view, const StepNumbers& numbers) {
  std::vector<TokenId> best;
  for (size_t i = 0; i < input_.size(); ++i) {
    if (IsMasked(view, first_ + static_cast<int32_t>(i))) best.push_back(numbers.choices[i].best);
  }
  const auto wanted = static_cast<size_t>(settings_.stability_steps);
  const bool same = std::all_of(history_.begin(), history_.end(), [&](const auto& earlier) { return earlier == best; });
  const bool stable = history_.size() >= wanted && same;
  if (wanted > 0) {
    if (history_.size() == wanted) history_.erase(history_.begin());
    history_.push_back(std::move(best));
  }
  return stable;
}

Decision Renoise::Decide(const CanvasView& view, const StepNumbers& numbers) {
  CHECK(numbers.choices.size() == input_.size() && first_ == view.first);
  Decision decision;
  double entropies = 0.0;
  for (size_t i = 0; i < input_.size(); ++i) {
    const int32_t p = first_ + static_cast<int32_t>(i);
    if (!IsMasked(view, p)) continue;
    const RowChoice& choice = numbers.choices[i];
    entropies += static_cast<double>(choice.entropy);
    const float confidence = std::min(1.0f, std::exp(choice.best_log_probability));
    decision.writes.push_back({p, choice.best, confidence, choice.best_log_probability});
  }
  const auto rows = static_cast<int32_t>(decision.writes.size());
  const bool sure = rows == 0 || entropies / rows < static_cast<double>(settings_.confidence_threshold);
  const bool stable = IsStable(view, numbers);
  const bool ends = view.block_forwards + 1 >= settings_.steps || (stable && sure);
  if (ends) return decision;
  // Some of a canvas cannot be written before the rest.
  if (rows > 0 && view.commits_min >= rows) {
    decision.paced = true;
    return decision;
  }
  AcceptRows(view, numbers);
  decision.writes.clear();
  return decision;
}

}  // namespace quicksilver
