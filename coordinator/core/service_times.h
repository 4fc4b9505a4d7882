#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/time/time.h"

namespace quicksilver {

/// How long sequences of a model hold their places: what waits are estimated from.
class ServiceTimes {
 public:
  void Add(absl::Duration held) {
    const double seconds = absl::ToDoubleSeconds(held);
    mean_ = mean_ == 0 ? seconds : 0.9 * mean_ + 0.1 * seconds;
    least_ = std::min(least_, seconds);
    if (++count_ % kWindow != 0) return;
    least_before_ = least_;
    least_ = std::numeric_limits<double>::infinity();
  }

  /// Moving average. Zero before the first.
  double mean_seconds() const { return mean_; }
  /// A time in which none of the last ones was done by far. Zero until enough were seen.
  absl::Duration TooShort() const {
    return count_ < kWindow ? absl::ZeroDuration() : absl::Seconds(0.5 * std::min(least_, least_before_));
  }

 private:
  static constexpr uint64_t kWindow = 32;

  double mean_ = 0;
  double least_ = std::numeric_limits<double>::infinity();
  double least_before_ = std::numeric_limits<double>::infinity();
  uint64_t count_ = 0;
};

}  // namespace quicksilver
