#include "worker/service/step_watchdog.h"

#include <unistd.h>

#include <csignal>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/log.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(250);
constexpr unsigned kLogSecondsMax = 1;

// The log may have to wait for a disk, or for a thread that does.
void EndWithinASecond() {
  struct sigaction action = {};
  action.sa_handler = [](int) { _exit(kExitGroupLost); };
  sigaction(SIGALRM, &action, nullptr);
  sigset_t alarms;
  sigemptyset(&alarms);
  sigaddset(&alarms, SIGALRM);
  pthread_sigmask(SIG_UNBLOCK, &alarms, nullptr);
  alarm(kLogSecondsMax);
}

}  // namespace

StepWatchdog::StepWatchdog(const Engine& engine, int rank)
    : engine_(engine), rank_(rank), thread_([this] { Watch(); }) {}

StepWatchdog::~StepWatchdog() {
  {
    MutexLock lock(mutex_);
    done_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void StepWatchdog::Watch() {
  StepPatience patience(kLook);
  MutexLock lock(mutex_);
  while (!done_) {
    const StepClock::Reading reading = engine_.StepTimes();
    const absl::Duration now = MonotonicNow(), limit = patience.Limit(reading, now), took = now - reading.since;
    if (took > limit) {
      EndWithinASecond();
      LogError("a step hangs: this rank ends itself", {{"rank", rank_},
                                                       {"seconds", absl::ToDoubleSeconds(took)},
                                                       {"seconds_max", absl::ToDoubleSeconds(limit)},
                                                       {"exit_code", int{kExitGroupLost}}});
      _exit(kExitGroupLost);
    }
    changed_.WaitFor(mutex_, kLook);
  }
}

}  // namespace quicksilver
