#pragma once

#include <cstddef>
#include <deque>

#include "absl/time/time.h"

namespace quicksilver {

/// Keeps work away from a group that fails again and again. Open: no work. Half open: one sequence at a time, whose
/// progress closes it and whose loss opens it for twice as long.
class CircuitBreaker {
 public:
  static constexpr size_t kFailuresMax = 5;
  static constexpr absl::Duration kWindow = absl::Minutes(10);
  static constexpr absl::Duration kOpenMin = absl::Seconds(60);
  static constexpr absl::Duration kOpenMax = absl::Minutes(10);
  enum class State { kClosed, kOpen, kHalfOpen };

  void OnFailure(absl::Duration now);
  void OnProgress();
  State state(absl::Duration now) const;
  /// When it is half open. Infinite while it is closed.
  absl::Duration half_open_at() const { return open_ ? until_ : absl::InfiniteDuration(); }

 private:
  std::deque<absl::Duration> failures_;  // Within the window, at most kFailuresMax.
  bool open_ = false;
  absl::Duration until_;
  absl::Duration open_time_ = kOpenMin;
};

}  // namespace quicksilver
