#pragma once

#include <sched.h>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace quicksilver {

/// The pauses of a loop that asks a device again and again. Most steps take longer than a sleeping core takes to wake,
/// so the beginning of a wait is not slept through.
class Patience {
 public:
  explicit Patience(absl::Duration limit = absl::InfiniteDuration()) : limit_(limit), start_(MonotonicNow()) {}

  /// Waits a little; false once the limit has passed.
  bool Pause() {
    const absl::Duration waited = MonotonicNow() - start_;
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
  absl::Duration start_;
};

}  // namespace quicksilver
