#include "worker/decoding/procedures/klass.h"

#include <algorithm>

namespace quicksilver {
namespace {

constexpr int32_t kSettledSteps = 2;

}  // namespace

void Klass::OpenBlock(const CanvasView& view) {
  rows_.clear();
  masks_ = CountMasks(view, OpenRange(view));
}

Decision Klass::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> asked = AskedRows(*this, view, numbers);
  std::vector<float> rank;
  std::vector<uint8_t> written(asked.size());
  bool ready = false;
  for (size_t i = 0; i < asked.size(); ++i) {
    const RowChoice& choice = numbers.choices[i];
    rank.push_back(choice.confidence);
    const auto [row, is_new] = rows_.try_emplace(asked[i].position);
    // A KL that is not a number, as between distributions that forbid different ids, has not settled.
    const double kl = row->second.log_sum_exp - choice.mean_previous - static_cast<double>(choice.entropy);
    const bool small = !is_new && kl < static_cast<double>(settings_.kl_threshold);
    row->second = {choice.log_sum_exp, small ? row->second.settled + 1 : 0};
    if (row->second.settled < kSettledSteps || !(choice.confidence > settings_.threshold)) continue;
    written[i] = 1;
    ready = true;
  }
  if (!ready) {
    const int32_t steps = std::clamp(settings_.schedule.StepsOf(view.block), 1, std::max(1, masks_));
    MarkBest(rank, std::max(1, ScheduledCount(masks_, steps, view.block_forwards)), written);
  }
  Decision decision;
  decision.paced = MarkBest(rank, view.commits_min, written);
  for (size_t i = 0; i < asked.size(); ++i) {
    if (written[i] == 0) continue;
    decision.writes.push_back(WriteOf(asked[i].position, numbers.choices[i]));
    rows_.erase(asked[i].position);
  }
  return decision;
}

}  // namespace quicksilver
