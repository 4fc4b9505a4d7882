#include "coordinator/core/circuit_breaker.h"

#include <algorithm>

namespace quicksilver {

void CircuitBreaker::OnFailure(absl::Duration now) {
  if (open_) {
    if (now < until_) return;
    open_time_ = std::min(2 * open_time_, kOpenMax);
    until_ = now + open_time_;
    return;
  }
  while (!failures_.empty() && failures_.front() <= now - kWindow) failures_.pop_front();
  failures_.push_back(now);
  if (failures_.size() < kFailuresMax) return;
  failures_.clear();
  open_ = true;
  until_ = now + open_time_;
}

void CircuitBreaker::OnProgress() {
  if (!open_) return;
  open_ = false;
  open_time_ = kOpenMin;
}

CircuitBreaker::State CircuitBreaker::state(absl::Duration now) const {
  if (!open_) return State::kClosed;
  return now < until_ ? State::kOpen : State::kHalfOpen;
}

}  // namespace quicksilver
