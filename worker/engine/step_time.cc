#include "worker/engine/step_time.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {
namespace {

// Half of what is known comes from the last 64 steps or so.
constexpr double kDecay = 0.99;
// A step of longer than this many times what was expected (a page fault storm, a suspended host) counts as this long.
constexpr double kOutlier = 4.0;
// How strongly the slope is pulled towards seconds / rows: what is right where all steps have the same number of rows,
// and little beside rows that differ by a third.
constexpr double kPull = 0.01;
constexpr int32_t kFirstShare = 8;

}  // namespace

StepTimeModel::StepTimeModel(int32_t block_length, int32_t step_rows_max)
    : block_length_(block_length), step_rows_max_(step_rows_max) {
  CHECK(block_length >= 1 && block_length <= step_rows_max);
}

void StepTimeModel::Observe(int32_t denoise_rows, int32_t prefill_rows, absl::Duration time) {
  const double rows = denoise_rows + prefill_rows;
  double seconds = std::max(0.0, absl::ToDoubleSeconds(time));
  if (rows <= 0.0) return;
  if (weight_ > 0.0) {
    seconds = std::min(seconds, kOutlier * absl::ToDoubleSeconds(Expected(denoise_rows + prefill_rows)));
  }
  weight_ = weight_ * kDecay + 1.0;
  rows_ = rows_ * kDecay + rows;
  seconds_ = seconds_ * kDecay + seconds;
  rows_squared_ = rows_squared_ * kDecay + rows * rows;
  rows_seconds_ = rows_seconds_ * kDecay + rows * seconds;
}

// Seconds a row, in [0, mean seconds / mean rows].
double StepTimeModel::Slope() const {
  const double rows = rows_ / weight_, seconds = seconds_ / weight_;
  const double variance = std::max(0.0, rows_squared_ / weight_ - rows * rows);
  const double covariance = rows_seconds_ / weight_ - rows * seconds;
  const double pull = kPull * rows * rows;
  const double proportional = seconds / rows;
  return std::clamp((covariance + pull * proportional) / (variance + pull), 0.0, proportional);
}

absl::Duration StepTimeModel::Expected(int32_t rows) const {
  if (weight_ == 0.0) return absl::ZeroDuration();
  return absl::Seconds(seconds_ / weight_ + Slope() * (rows - rows_ / weight_));
}

int32_t StepTimeModel::PrefillRows(absl::Duration target, int32_t denoise_rows) const {
  if (weight_ == 0.0) return std::max(block_length_, step_rows_max_ / kFirstShare);
  const double fixed = seconds_ / weight_ - Slope() * rows_ / weight_;
  const double left = absl::ToDoubleSeconds(target) - fixed - Slope() * denoise_rows;
  // Also where a row costs nothing measurable.
  if (left >= Slope() * step_rows_max_) return step_rows_max_;
  if (left <= 0.0) return block_length_;
  return std::clamp(static_cast<int32_t>(left / Slope()), block_length_, step_rows_max_);
}

}  // namespace quicksilver
