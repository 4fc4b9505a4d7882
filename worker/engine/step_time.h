#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace quicksilver {

/// What a step costs, learned from the steps that ran: seconds = fixed + slope * rows. Least squares over an
/// exponentially weighted past, so that it follows a machine that slows down. Pure; the leader's alone, which writes
/// the answer into the log.
class StepTimeModel {
 public:
  /// `block_length` and `step_rows_max` bound the answers. Requires: 1 <= block_length <= step_rows_max.
  StepTimeModel(int32_t block_length, int32_t step_rows_max);

  /// A step of that many rows (prefill and denoising ones, guides' included) took `time`.
  void Observe(int32_t denoise_rows, int32_t prefill_rows, absl::Duration time);
  /// What a step of `rows` rows is expected to take; zero before the first observation.
  absl::Duration Expected(int32_t rows) const;
  /// Most prefill rows beside `denoise_rows` for a step that ends within `target`, in [block_length, step_rows_max].
  /// Before the first observation an eighth of a step.
  int32_t PrefillRows(absl::Duration target, int32_t denoise_rows) const;

 private:
  double Slope() const;

  const int32_t block_length_;
  const int32_t step_rows_max_;
  // Weighted sums of the past, the newest step with weight 1.
  double weight_ = 0.0;
  double rows_ = 0.0;
  double seconds_ = 0.0;
  double rows_squared_ = 0.0;
  double rows_seconds_ = 0.0;
};

}  // namespace quicksilver
