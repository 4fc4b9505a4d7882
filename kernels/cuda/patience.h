#pragma once

#include <sched.h>

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace quicksilver {

/// The pauses of a loop that asks a device again and again. Most steps take longer than a sleeping core takes to wake,
/// so the beginning of a wait is not slept through.
class Patience {
 public:
  explicit Patience(absl::Duration limit = absl::InfiniteDuration()) : limit_(limit) {}

  /// Waits a little; false once the limit has passed.
  bool Pause() {
    const absl::Duration waited = absl::FromChrono(std::chrono::steady_clock::now() - start_);
    if (waited >= limit_) return false;
    if (waited < absl::Milliseconds(2)) {
      sched_yield();
    } else {
      absl::SleepFor(absl::Microseconds(20));
    }
    return true;
  }

 private:
  absl::Duration limit_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace quicksilver
