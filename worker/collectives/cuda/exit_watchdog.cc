#include "worker/collectives/cuda/exit_watchdog.h"

#include <unistd.h>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/log.h"

namespace quicksilver {

ExitWatchdog::ExitWatchdog() : thread_([this] { Watch(); }) {}

ExitWatchdog::~ExitWatchdog() {
  {
    MutexLock lock(mutex_);
    done_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void ExitWatchdog::Arm(absl::Duration budget, const std::string& what) {
  MutexLock lock(mutex_);
  if (armed_) return;
  armed_ = true;
  what_ = what;
  budget_ = budget;
  deadline_ = MonotonicNow() + budget;
  changed_.NotifyAll();
}

void ExitWatchdog::Disarm() {
  MutexLock lock(mutex_);
  armed_ = false;
  changed_.NotifyAll();
}

void ExitWatchdog::Watch() {
  MutexLock lock(mutex_);
  while (!done_) {
    if (!armed_) {
      changed_.Wait(mutex_);
      continue;
    }
    const absl::Duration left = deadline_ - MonotonicNow();
    if (left > absl::ZeroDuration()) {
      changed_.WaitFor(mutex_, left);
      continue;
    }
    LogError("a rank that cannot let go of its device ends itself",
             {{"what", what_}, {"seconds", absl::ToDoubleSeconds(budget_)}, {"exit_code", int{kExitGroupLost}}});
    _exit(kExitGroupLost);
  }
}

}  // namespace quicksilver
