#include <sys/resource.h>

#include <iostream>

#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "worker/options.h"
#include "worker/service/exit_code.h"
#include "worker/service/group_plan.h"
#include "worker/service/launcher.h"
#include "worker/service/machine.h"
#include "worker/service/rank.h"

namespace quicksilver {
namespace {

// What a person has to mend is found here, before a rank is started or a port bound.
absl::Status CheckModel(const WorkerOptions& options) {
  const absl::StatusOr<OpenModel> model = OpenModelForServing(options);
  if (!model.ok()) return model.status();
  const absl::StatusOr<Machine> machine = InspectMachine(options);
  if (!machine.ok()) return machine.status();
  return MakeGroupPlan(options, *model, *machine).status();
}

int Main(int argc, char** argv) {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);  // Prompts live in the ranks' memory alone.
  WorkerOptions options;
  if (const std::optional<int> exit = ReadOptions(argc, argv, options)) return *exit;
  InitLog("worker", options.log_level);
  if (options.rank >= 0) {
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);  // gRPC's own locks.
    return RunRank(options);
  }
  if (const absl::Status status = CheckModel(options); !status.ok()) {
    std::cerr << "quicksilver-worker: " << status.message() << "\n";
    return ExitCodeOf(status);
  }
  return RunLauncher(options, argc, argv);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
