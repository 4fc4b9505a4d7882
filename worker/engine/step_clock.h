#pragma once

#include <array>
#include <cstddef>

#include "absl/time/time.h"
#include "common/mutex.h"

namespace quicksilver {

/// How long steps take and whether one is under way, for those who watch the engine from other threads. `now` is
/// MonotonicNow(). Thread-safe.
class StepClock {
 public:
  struct Reading {
    absl::Duration since =
        absl::InfiniteDuration();  ///< When the step that is under way began; infinite: there is none.
    bool preparing = false;        ///< It does not run yet: what it runs is being recorded, maybe tried out.
    absl::Duration expected;       ///< How long that step should take; zero: unknown.
    absl::Duration mean;           ///< Of the recent steps, the newest weigh most; zero: none yet.
    absl::Duration p99;            ///< Of the last 256 steps; zero: none yet.
  };

  /// What a step needs is being made ready, until Begin() or End().
  void Prepare(absl::Duration now);
  /// A step is under way that should take `expected`; zero: unknown.
  void Begin(absl::Duration now, absl::Duration expected);
  /// A step is done and the next one under way. Returns how long it took.
  absl::Duration Lap(absl::Duration now);
  /// The one that was begun last is not to be.
  void End();

  Reading Read() const;

 private:
  mutable Mutex mutex_;
  absl::Duration since_ GUARDED_BY(mutex_) = absl::InfiniteDuration();
  bool preparing_ GUARDED_BY(mutex_) = false;
  absl::Duration expected_ GUARDED_BY(mutex_);
  absl::Duration mean_ GUARDED_BY(mutex_);
  std::array<absl::Duration, 256> last_ GUARDED_BY(mutex_);
  size_t laps_ GUARDED_BY(mutex_) = 0;
};

/// How long the step that is under way may take: 20 times what is expected of it or what slow ones took, at least 5 s;
/// two minutes while it is prepared, or while there is none to compare with.
absl::Duration StepDeadline(const StepClock::Reading& reading);

/// StepDeadline() for one who looks again and again: time in which it could not look does not count. A process that was
/// stopped, frozen or paused along with its machine has not hung. Not thread-safe.
class StepPatience {
 public:
  /// To be asked every `look`, or so.
  explicit StepPatience(absl::Duration look) : look_(look) {}

  /// How long the step of `reading` may take, seen at `now`.
  absl::Duration Limit(const StepClock::Reading& reading, absl::Duration now);

 private:
  const absl::Duration look_;
  absl::Duration looked_ = absl::InfiniteDuration();  // When last; infinite: not yet.
  absl::Duration since_;                              // Of the step it was.
  absl::Duration missed_;                             // Of that step.
};

}  // namespace quicksilver
