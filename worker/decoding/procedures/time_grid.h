#pragma once

#include <cstdint>
#include <memory>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// Dream's procedures (decoding.md §2): forward i of a block's n stands at the times t_i and t_(i+1) of a grid from 1
/// to 0.001, and of m masked positions int(m (1 - t_(i+1) / t_i)) are written, possibly none; the last one writes all.
/// kQuotaThreshold (Fast-dLLM for Dream): masks / n a forward, plus what earlier ones left over, of which all but the
/// best must reach `threshold`.
class TimeGrid final : public Procedure {
 public:
  struct Settings {
    Policy policy = Policy::kEntropy;  ///< kOrigin, kMaskgitPlus, kTopkMargin, kEntropy or kQuotaThreshold.
    SamplingRule sampling;
    int32_t steps = 1;   ///< Of all blocks together.
    int32_t blocks = 1;  ///< Of the answer.
    float threshold = 0.0f;
    float confidence_temperature = 0.0f;  ///< > 0: rows are drawn from softmax(confidence / it).
  };
  explicit TimeGrid(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<TimeGrid>(*this); }
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  int32_t steps_max(int32_t positions) const override { return settings_.steps + positions + 2; }

  /// Point `i` of the grid of `steps` steps.
  static float TimeAt(int32_t i, int32_t steps);

 private:
  int32_t StepsOf(const CanvasView& view) const;
  int32_t CountNow(const CanvasView& view, int32_t masks) const;
  float ConfidenceOf(const RowChoice& choice) const;
  double DrawAt(const CanvasView& view, int32_t position) const;

  Settings settings_;
};

}  // namespace quicksilver
