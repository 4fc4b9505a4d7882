#include "worker/decoding/procedures/time_grid.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/check.h"

namespace quicksilver {
namespace {

constexpr float kLastTime = 1e-3f;

}  // namespace

// As torch.linspace counts it, in float: from the nearer end.
float TimeGrid::TimeAt(int32_t i, int32_t steps) {
  const float step = (kLastTime - 1.0f) / static_cast<float>(steps);
  if (i < (steps + 1) / 2) return 1.0f + step * static_cast<float>(i);
  return kLastTime - step * static_cast<float>(steps - i);
}

int32_t TimeGrid::StepsOf(const CanvasView& view) const {
  return std::max(1, ScheduledCount(settings_.steps, settings_.blocks, view.block));
}

// How many of `masks` positions are to be written, or to be looked at.
int32_t TimeGrid::CountNow(const CanvasView& view, int32_t masks) const {
  const int32_t steps = StepsOf(view), step = view.block_forwards;
  if (step >= steps - 1) return masks;
  if (settings_.policy != Policy::kQuotaThreshold) {
    const float left = TimeAt(step + 1, steps) / TimeAt(step, steps);
    return static_cast<int32_t>(static_cast<float>(masks) * (1.0f - left));
  }
  const auto fixed = view.fixed.subspan(static_cast<size_t>(view.first), static_cast<size_t>(view.end - view.first));
  const int32_t all = static_cast<int32_t>(std::count(fixed.begin(), fixed.end(), 0));
  return std::clamp(all / steps * (step + 1) - (all - masks), 1, masks);
}

float TimeGrid::ConfidenceOf(const RowChoice& choice) const {
  if (settings_.policy == Policy::kTopkMargin) return choice.margin;
  return settings_.policy == Policy::kEntropy ? -choice.entropy : choice.confidence;
}

double TimeGrid::DrawAt(const CanvasView& view, int32_t position) const {
  const DrawPlace place = {settings_.sampling.seed, settings_.sampling.choice, static_cast<uint32_t>(position),
                           static_cast<uint32_t>(view.forwards)};
  return UniformDraw(place, 0, DrawPurpose::kTransfer);
}

Decision TimeGrid::Decide(const CanvasView& view, const StepNumbers& numbers) {
  std::vector<RowAsk> asked;
  Ask(view, asked);
  CHECK(asked.size() == numbers.choices.size());
  const int32_t masks = static_cast<int32_t>(asked.size());
  std::vector<double> rank(asked.size());
  for (size_t i = 0; i < asked.size(); ++i) {
    const double confidence = ConfidenceOf(numbers.choices[i]);
    rank[i] = confidence;
    if (settings_.policy == Policy::kOrigin) {
      rank[i] = -DrawAt(view, asked[i].position);
    } else if (settings_.confidence_temperature > 0.0f) {
      // The best n of these are a draw of n without replacement (Gumbel-top-k).
      rank[i] =
          confidence / settings_.confidence_temperature - PortableLog(-PortableLog(DrawAt(view, asked[i].position)));
    }
  }
  std::vector<size_t> order(asked.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rank[a] > rank[b]; });
  int32_t wanted = CountNow(view, masks);
  if (settings_.policy == Policy::kOrigin && wanted < masks) {
    const int32_t steps = StepsOf(view);
    const float chance = 1.0f - TimeAt(view.block_forwards + 1, steps) / TimeAt(view.block_forwards, steps);
    wanted = static_cast<int32_t>(std::count_if(rank.begin(), rank.end(), [=](double r) { return -r < chance; }));
  }
  Decision decision;
  for (int32_t n = 0; n < masks; ++n) {
    const size_t i = order[static_cast<size_t>(n)];
    bool selected = n < wanted;
    if (settings_.policy == Policy::kQuotaThreshold && n > 0) selected = selected && rank[i] >= settings_.threshold;
    if (!selected && n >= view.commits_min) continue;
    decision.paced = decision.paced || !selected;
    const RowChoice& choice = numbers.choices[i];
    decision.writes.push_back({asked[i].position, choice.token, ConfidenceOf(choice), choice.log_probability});
  }
  std::sort(decision.writes.begin(), decision.writes.end(),
            [](const TokenWrite& a, const TokenWrite& b) { return a.position < b.position; });
  return decision;
}

}  // namespace quicksilver
