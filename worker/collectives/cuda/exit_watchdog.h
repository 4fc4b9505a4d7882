#pragma once

#include <string>
#include <thread>

#include "absl/time/time.h"
#include "common/mutex.h"

namespace quicksilver {

/// Ends the process with kExitGroupLost, and a log line that says why, when something that has to end soon does not: a
/// driver or library call that hangs cannot be ended otherwise. Has a thread of its own from the start, since starting
/// one may fail just then. Thread-safe.
class ExitWatchdog {
 public:
  ExitWatchdog();
  ~ExitWatchdog();

  /// From now on `what` has `budget`. A second call before Disarm() changes nothing.
  void Arm(absl::Duration budget, const std::string& what);
  void Disarm();

 private:
  void Watch();

  Mutex mutex_;
  CondVar changed_;
  bool armed_ GUARDED_BY(mutex_) = false;
  bool done_ GUARDED_BY(mutex_) = false;
  absl::Duration deadline_ GUARDED_BY(mutex_);
  absl::Duration budget_ GUARDED_BY(mutex_);
  std::string what_ GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace quicksilver
