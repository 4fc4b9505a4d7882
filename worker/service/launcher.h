#pragma once

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

/// Starts one process per rank of this host (`argv` with --rank and the like behind it), and starts all of them again
/// with a higher epoch whenever one dies. SIGTERM and SIGINT go to the ranks, which drain; a second one kills them.
/// Returns the exit code: 0 after a drain, a rank's own 2, 3 or 5.
int RunLauncher(const WorkerOptions& options, int argc, char** argv);

}  // namespace quicksilver
