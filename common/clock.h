#pragma once

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace quicksilver {

/// Time since an arbitrary start, never set back: for deadlines, leases and durations. Wall-clock jumps do not move it.
inline absl::Duration MonotonicNow() { return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()); }

}  // namespace quicksilver
