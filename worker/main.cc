#include <sys/resource.h>

#include <iostream>

#include "absl/synchronization/mutex.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "worker/options.h"
#include "worker/service/exit_code.h"
#include "worker/service/group_plan.h"
#include "worker/service/launcher.h"
#include "worker/service/machine.h"
#include "worker/service/rank.h"

namespace quicksilver {
namespace {

// What a person has to mend is found here, before a rank is started or a port bound. What is decided for the whole
// group goes to the ranks: each of them sees its own device only.
absl::Status PlanForRanks(WorkerOptions& options) {
  const absl::StatusOr<OpenModel> model = OpenModelForServing(options);
  if (!model.ok()) return model.status();
  const absl::StatusOr<Machine> machine = InspectMachine(options);
  if (!machine.ok()) return machine.status();
  const absl::StatusOr<GroupPlan> plan = MakeGroupPlan(options, *model, *machine);
  if (!plan.ok()) return plan.status();
  options.planned_device = machine->cuda ? "cuda" : "cpu";
  options.planned_pages = plan->pages;
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);  // Prompts live in the ranks' memory alone.
  WorkerOptions options;
  if (const std::optional<int> exit = ReadOptions(argc, argv, options)) return *exit;
  if (const absl::Status status = InitFailpoints(QS_FAILPOINTS_COMPILED_IN, options.failpoints, options.restarts);
      !status.ok()) {
    std::cerr << "quicksilver-worker: " << status.message() << "\n";
    return kExitUsage;
  }
  InitLog("worker", options.log_level);
  if (options.rank >= 0) {
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);  // gRPC's own locks.
    return RunRank(options);
  }
  if (const absl::Status status = PlanForRanks(options); !status.ok()) {
    std::cerr << "quicksilver-worker: " << status.message() << "\n";
    return ExitCodeOf(status);
  }
  return RunLauncher(options, argc, argv);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
