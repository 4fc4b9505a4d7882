#include "worker/decoding/procedures/remdm.h"

#include <algorithm>
#include <cmath>

namespace quicksilver {
namespace {

/// Of a token that was there before: nobody doubts it.
constexpr float kGivenConfidence = 1.0f;

}  // namespace

void Remdm::OpenBlock(const CanvasView& view) {
  static_cast<void>(view);
  confidence_.clear();
}

int32_t Remdm::steps_max(int32_t positions) const {
  static_cast<void>(positions);
  return settings_.steps.steps_max() + 1;
}

void Remdm::Ask(const CanvasView& view, std::vector<RowAsk>& rows) const {
  const PositionRange open = OpenRange(view);
  const bool clean = CountMasks(view, open) == 0;
  for (int32_t p = open.first; p < open.end; ++p) {
    if (IsMasked(view, p) || (clean && IsFree(view, p))) rows.push_back({p});
  }
}

double Remdm::AlphaAt(double t) const {
  if (t <= 0.0) return 1.0;
  if (settings_.schedule != Schedule::kLoop) return 1.0 - t;
  const double on = settings_.on, off = settings_.off, alpha = settings_.alpha;
  if (t > on) return (1.0 - t) * alpha / (1.0 - on);
  if (t > off) return alpha;
  return 1.0 - t * (1.0 - alpha) / off;
}

double Remdm::SigmaOf(double t, double sigma_max) const {
  switch (settings_.schedule) {
    case Schedule::kCap:
      return std::min(static_cast<double>(settings_.eta), sigma_max);
    case Schedule::kRescale:
      return static_cast<double>(settings_.eta) * sigma_max;
    case Schedule::kConfidence:
      return sigma_max;
    case Schedule::kLoop:
      if (t > static_cast<double>(settings_.on) || t <= static_cast<double>(settings_.off)) return 0.0;
      return std::min(static_cast<double>(settings_.eta), sigma_max);
  }
  return 0.0;
}

Remdm::Step Remdm::StepOf(const CanvasView& view) const {
  const int32_t steps = settings_.steps.StepsOf(view.block);
  Step step;
  step.last = view.block_forwards + 1 >= steps;
  if (step.last) return step;
  const double t = 1.0 - static_cast<double>(view.block_forwards) / steps;
  const double alpha_t = AlphaAt(t), alpha_s = AlphaAt(1.0 - static_cast<double>(view.block_forwards + 1) / steps);
  step.sigma = SigmaOf(t, alpha_t > 0.0 ? std::min(1.0, (1.0 - alpha_s) / alpha_t) : 1.0);
  // A masked row has no share in the softmax of kConfidence.
  const double sigma = settings_.schedule == Schedule::kConfidence ? 0.0 : step.sigma;
  if (alpha_t < 1.0) step.write = (alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t);
  return step;
}

std::vector<TokenWrite> Remdm::Remask(const CanvasView& view, double sigma) const {
  const PositionRange open = OpenRange(view);
  std::vector<TokenWrite> clean;
  double total = 0.0;
  for (int32_t p = open.first; p < open.end; ++p) {
    if (IsMasked(view, p) || !IsFree(view, p)) continue;
    const auto given = confidence_.find(p);
    clean.push_back({p, view.mask_id, given == confidence_.end() ? kGivenConfidence : given->second});
    total += std::exp(-static_cast<double>(clean.back().confidence));
  }
  std::erase_if(clean, [&](const TokenWrite& row) {
    const double share =
        settings_.schedule == Schedule::kConfidence ? std::exp(-static_cast<double>(row.confidence)) / total : 1.0;
    return UniformDraw(PlaceIn(view, settings_.sampling, row.position), 0, DrawPurpose::kRemask) >= sigma * share;
  });
  return clean;
}

Decision Remdm::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  const Step step = StepOf(view);
  std::vector<TokenWrite> masked;
  std::vector<float> rank;
  std::vector<uint8_t> written;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t p = rows[i].position;
    if (!IsMasked(view, p)) continue;
    masked.push_back(WriteOf(p, numbers.choices[i]));
    rank.push_back(numbers.choices[i].confidence);
    const double draw = UniformDraw(PlaceIn(view, settings_.sampling, p), 0, DrawPurpose::kTransfer);
    written.push_back(step.last || draw < step.write ? 1 : 0);
  }
  Decision decision;
  decision.paced = MarkBest(rank, view.commits_min, written);
  std::vector<TokenWrite> remasked = Remask(view, step.sigma);
  if (view.commits_min > 0) {
    // A pace has no time for doubts.
    decision.paced = decision.paced || !remasked.empty() || !step.last;
    remasked.clear();
  }
  decision.writes = std::move(remasked);
  for (size_t i = 0; i < masked.size(); ++i) {
    if (written[i] == 0) continue;
    decision.writes.push_back(masked[i]);
    confidence_[masked[i].position] = masked[i].confidence;
  }
  SortWrites(decision.writes);
  decision.keep_open = !step.last && view.commits_min == 0;
  return decision;
}

}  // namespace quicksilver
