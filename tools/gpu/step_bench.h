#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/gpu/bench_cases.h"
#include "tools/gpu/timed_ops.h"
#include "worker/collectives/communicator.h"
#include "worker/engine/step_runner.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// Times of one case, by the clock of the host at the moments when it learns that a step is done. Seconds; medians.
struct StepTimes {
  int launches = 0;
  int steps_per_launch = 0;
  double step = 0.0;  ///< From launch to launch, divided by their steps: what a user sees.
  /// From the first to the last step of a launch, divided by those between: no host there. 0 where a launch has only
  /// one step: not known, and all of the step counts as the host's.
  double device = 0.0;
  double host_gap = 0.0;  ///< step - device: the device waits for the host, spread over the steps of a launch.
  double step_p10 = 0.0;
  double step_p90 = 0.0;
};

struct StepBenchOptions {
  int32_t rows_max = 0;       ///< Of a step.
  int32_t sequences_max = 0;  ///< Of a step.
  int32_t positions_max = 0;  ///< Of a sequence.
  int32_t steps_per_launch = 16;
};

/// One model of random numbers on one device, timed as the engine runs it: planned segments, recorded steps, decisions
/// on the device.
class StepBench {
 public:
  /// `ops` and `ranks` outlive it.
  static absl::StatusOr<std::unique_ptr<StepBench>> Make(const ModelSpec& spec, TimedOps& ops, Communicator& ranks,
                                                         const StepBenchOptions& options);

  /// Warms up, then launches for about `seconds`, ten times at least. Fills the cache when a case needs more of it than
  /// those before. With several ranks all have to pass the same `launches`, other than 0, in place of a time.
  absl::StatusOr<StepTimes> Time(const StepCase& of, double seconds, int launches = 0);

  /// Where `steps` steps of the case spend their time on the device, when they are enqueued operation by operation.
  absl::StatusOr<std::map<std::string, TimedOps::Part>> Break(const StepCase& of, int steps);

  const Transformer& model() const { return *model_; }

 private:
  StepBench(TimedOps& ops, Communicator& ranks, const StepBenchOptions& options)
      : ops_(ops), ranks_(ranks), options_(options) {}

  struct Plan;
  absl::StatusOr<std::unique_ptr<Plan>> Prepare(const StepCase& of);
  absl::Status Fill(Plan& plan, const StepCase& of);
  RunningSequence MakeRunning(const ModelSpec& spec, const StepCase& of, int32_t index) const;
  int32_t PagesOfSequence() const;

  TimedOps& ops_;
  Communicator& ranks_;
  const StepBenchOptions options_;
  std::unique_ptr<Transformer> model_;
  int32_t filled_sequences_ = 0;  // Whose first filled_positions_ positions are in the cache.
  int32_t filled_positions_ = 0;
};

}  // namespace quicksilver
