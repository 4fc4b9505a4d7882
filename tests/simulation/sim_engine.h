#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/simulation/fake_model.h"
#include "tests/simulation/history.h"
#include "tests/simulation/mutant.h"
#include "tests/simulation/plan.h"
#include "tests/simulation/world.h"
#include "worker/engine/entry_writer.h"
#include "worker/engine/pacer.h"
#include "worker/engine/report_builder.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_time.h"

namespace quicksilver::simulation {

/// One rank's replicated state: what the engine does with a log entry.
class Replica {
 public:
  Replica(const ModelSpec& model, const SchedulerLimits& limits) : model_(model), scheduler_(limits) {}

  /// Admits and cancels; answers the cancelled sequences as they were. `leak`: a planted bug.
  std::vector<RunningSequence> Apply(const v1::LogEntry& entry, bool leak);
  struct Expired {
    RunningSequence sequence;
    StepOutcome outcome;
  };
  /// Ends what is over by the entry's clock.
  std::vector<Expired> Expire(const v1::LogEntry& entry);
  const std::vector<PlannedSegment>& Plan(const v1::LogEntry& entry);
  void Remove(uint64_t id, bool sound);

  Scheduler& scheduler() { return scheduler_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  const ModelSpec& model_;
  Scheduler scheduler_;
  Pacer pacer_;
};

/// One incarnation of a group's engine: the loop of the leader, with the real scheduler, sequences and reports, a fake
/// model, and in some runs a second rank that must take the same decisions.
class SimEngine {
 public:
  SimEngine(World& world, History& history, const Plan& plan, const GroupPlan& group, uint64_t epoch,
            const std::string& fingerprint, Mutant mutant);

  // The mailbox.
  absl::Status Submit(uint64_t stream, const v1::Submit& submit, int streams);
  void Cancel(uint64_t stream, uint64_t sequence_id);
  void CancelStream(uint64_t stream);
  bool idle() const;  ///< Nothing to do, and nothing in the mailbox.

  /// Takes what is in the mailbox and plans a step. Answers how long it takes; zero when there is nothing to run.
  absl::Duration Begin(absl::Duration now);
  /// A request that kills its group and is in the step that runs; 0: none.
  uint64_t Poison() const;
  /// Applies the step that runs.
  void End(absl::Duration now);
  std::map<uint64_t, v1::StepResult> TakeResults();

  SchedulerStatistics statistics() const { return leader_.scheduler().statistics(); }
  uint64_t steps() const { return steps_; }
  absl::Duration mean_step() const { return mean_step_; }
  std::string Residue() const;

 private:
  struct Planned {
    PlannedSegment segment;
    std::vector<RowChoice> choices;
  };

  v1::LogEntry MakeEntry(absl::Duration now);
  void RunModel(const std::vector<PlannedSegment>& plan);
  void Follow(const v1::LogEntry& entry, const std::vector<PlannedSegment>& plan);
  void ApplyTo(Replica& replica, bool leads, absl::Duration now);
  std::set<uint64_t> Holders() const;
  void CheckPages();
  void CheckService(absl::Duration now);
  uint64_t RequestOf(const Sequence& sequence) const;

  World& world_;
  History& history_;
  const Plan& plan_;
  const GroupPlan& group_;
  const Mutant mutant_;
  const uint64_t build_;
  const SchedulerLimits limits_;
  std::map<uint64_t, uint64_t> numbers_;  // Requests by the seed of their sampling.

  // The mailbox.
  std::deque<Submission> submissions_;
  std::set<SequenceKey> known_;
  std::set<SequenceKey> cancels_;
  std::set<uint64_t> broken_;
  std::map<uint64_t, int32_t> unstarted_;

  Replica leader_;
  std::optional<Replica> follower_;
  ReportBuilder reports_;
  StepTimeModel step_times_;
  FakeKv kv_;
  uint64_t index_ = 0;
  uint64_t last_id_ = 0;
  uint64_t steps_ = 0;
  int32_t denoise_rows_ = 0, prefill_rows_ = 0;  // Of the step that runs, or the last one.
  absl::Duration began_;
  absl::Duration mean_step_;
  std::vector<Planned> running_;
  std::set<uint64_t> ghosts_;                       // What a planted bug left in the scheduler.
  std::map<uint64_t, std::string> salts_;           // By engine id; only live ones.
  std::map<uint64_t, absl::Duration> last_served_;  // The same.
};

}  // namespace quicksilver::simulation
