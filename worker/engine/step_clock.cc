#include "worker/engine/step_clock.h"

#include <algorithm>
#include <vector>

namespace quicksilver {
namespace {

constexpr int kMeanShare = 16;  // Of a step in the mean.
constexpr absl::Duration kDeadlineMin = absl::Seconds(5);
constexpr absl::Duration kFirstDeadline = absl::Minutes(2);
constexpr int kDeadlineFactor = 20;
constexpr int kLooksMissed = 4;  // A busy machine may be late for fewer.

}  // namespace

void StepClock::Prepare(absl::Duration now) {
  MutexLock lock(mutex_);
  since_ = now;
  preparing_ = true;
}

void StepClock::Begin(absl::Duration now, absl::Duration expected) {
  MutexLock lock(mutex_);
  since_ = now;
  preparing_ = false;
  expected_ = expected;
}

absl::Duration StepClock::Lap(absl::Duration now) {
  MutexLock lock(mutex_);
  const absl::Duration took = std::max(now - since_, absl::ZeroDuration());
  mean_ = laps_ == 0 ? took : mean_ + (took - mean_) / kMeanShare;
  last_[laps_ % last_.size()] = took;
  ++laps_;
  since_ = now;
  return took;
}

void StepClock::End() {
  MutexLock lock(mutex_);
  since_ = absl::InfiniteDuration();
}

StepClock::Reading StepClock::Read() const {
  Reading reading;
  std::vector<absl::Duration> sorted;
  {
    MutexLock lock(mutex_);
    reading.since = since_;
    reading.preparing = preparing_;
    reading.expected = expected_;
    reading.mean = mean_;
    sorted.assign(last_.begin(), last_.begin() + static_cast<ptrdiff_t>(std::min(laps_, last_.size())));
  }
  if (sorted.empty()) return reading;
  const auto slow = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() * 99 / 100);
  std::nth_element(sorted.begin(), slow, sorted.end());
  reading.p99 = *slow;
  return reading;
}

absl::Duration StepDeadline(const StepClock::Reading& reading) {
  if (reading.preparing || reading.p99 == absl::ZeroDuration()) return kFirstDeadline;
  return std::max(kDeadlineMin, kDeadlineFactor * std::max(reading.expected, reading.p99));
}

absl::Duration StepPatience::Limit(const StepClock::Reading& reading, absl::Duration now) {
  if (reading.since != since_) missed_ = absl::ZeroDuration();
  since_ = reading.since;
  if (now - looked_ > kLooksMissed * look_) missed_ += std::max(now - std::max(looked_, since_), absl::ZeroDuration());
  looked_ = now;
  return StepDeadline(reading) + missed_;
}

}  // namespace quicksilver
