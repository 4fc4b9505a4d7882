#pragma once

#include <thread>

#include "common/mutex.h"
#include "worker/engine/engine.h"

namespace quicksilver {

/// Ends the process with kExitGroupLost, and a log line that says why, when a step of the engine takes longer than
/// StepDeadline() in time in which this process runs: a hung collective, kernel or loop ends no other way, and the launcher then forms the group anew. Its
/// thread needs nothing that a hung engine could hold.
class StepWatchdog {
 public:
  /// `engine` outlives it.
  StepWatchdog(const Engine& engine, int rank);
  ~StepWatchdog();

 private:
  void Watch();

  const Engine& engine_;
  const int rank_;
  Mutex mutex_;
  CondVar changed_;
  bool done_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace quicksilver
