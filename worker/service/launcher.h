#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/time/time.h"
#include "worker/options.h"

namespace quicksilver {

/// How long to wait before a group is formed again: not at all after it has served for a while or failed once, then
/// 1 s, doubled up to 60 s. Pure.
class RestartPolicy {
 public:
  /// `lived`: from the start of the ranks to the loss of the group.
  absl::Duration NextDelay(absl::Duration lived);

 private:
  int quick_failures_ = 0;
};

/// Counts how often devices fail. One that failed three times is not used again. Pure.
class DeviceHealth {
 public:
  /// True when that makes the device unhealthy.
  bool OnFailure(int32_t device) { return ++failures_[device] == kFailuresMax; }
  /// Ascending.
  std::vector<int32_t> Unhealthy() const;

 private:
  static constexpr int kFailuresMax = 3;
  std::map<int32_t, int> failures_;
};

/// Starts one process per rank of this host (`argv` with --rank and the like behind it), and starts all of them again
/// with a higher epoch whenever one dies. SIGTERM and SIGINT go to the ranks, which drain; a second one kills them.
/// Returns the exit code: 0 after a drain, a rank's own 2, 3 or 5; 3 also when devices have failed so often that too
/// few of --devices are left for the ranks.
int RunLauncher(const WorkerOptions& options, int argc, char** argv);

}  // namespace quicksilver
