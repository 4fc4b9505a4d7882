#include "worker/engine/engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "quicksilver/v1/group.pb.h"
#include "worker/engine/entry_writer.h"
#include "worker/engine/mailbox.h"
#include "worker/engine/pacer.h"
#include "worker/engine/report_builder.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_batch.h"
#include "worker/engine/step_clock.h"
#include "worker/engine/step_runner.h"
#include "worker/engine/submission.h"

namespace quicksilver {
namespace {

/// A running hash of the group's decisions: equal on all ranks as long as they agree.
class Seal {
 public:
  uint64_t value() const { return value_; }
  void Mix(uint64_t x) {
    value_ ^= x;
    value_ *= 0x9E3779B97F4A7C15u;
    value_ ^= value_ >> 29;
  }

 private:
  uint64_t value_ = 0x5EED;
};

SchedulerLimits LimitsOf(const Transformer& model, const EngineOptions& options) {
  SchedulerLimits limits;
  limits.sequences_max = options.sequences_max;
  limits.step_rows_max = options.step_rows_max;
  limits.pages = model.pages();
  limits.page_size = model.page_size();
  // Where every step computes the whole canvas there is nothing to keep.
  limits.share_prefixes = options.share_prefixes && model.spec().grid != BlockGrid::kAfterPrompt;
  return limits;
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(Transformer& model, Ops& ops, Communicator& ranks, ControlChannel& control, const EngineOptions& options,
             uint64_t epoch, Report report)
      : model_(model),
        ranks_(ranks),
        control_(control),
        options_(options),
        report_(std::move(report)),
        limits_(LimitsOf(model, options)),
        scheduler_(limits_),
        runner_(model, ops, ranks, {options.step_rows_max, options.sequences_max, options.steps_per_launch_max}),
        reports_(epoch),
        mailbox_(options.waiting_max),
        writer_(options_, model.spec().block_length, mailbox_, reports_) {
    statistics_.pages_free = model.pages();
  }

  absl::Status Prepare() override { return runner_.Allocate(); }
  absl::Status Run() override;
  absl::Status Submit(uint64_t stream, const v1::Submit& submit, int32_t streams) override;
  void Cancel(uint64_t stream, uint64_t sequence_id) override { mailbox_.Cancel({stream, sequence_id}); }
  void CancelStream(uint64_t stream) override { mailbox_.CancelStream(stream); }
  void Shutdown() override { mailbox_.Shutdown(); }
  EngineLoad Load() const override;
  StepClock::Reading StepTimes() const override { return step_clock_.Read(); }

 private:
  bool leads() const { return ranks_.rank() == 0; }
  uint64_t Place() const { return static_cast<uint64_t>(ranks_.rank()); }  // Of failpoints.
  absl::Status Loop();
  absl::StatusOr<v1::LogEntry> NextEntry(uint64_t index);
  absl::Status Apply(const v1::LogEntry& entry);
  absl::Status Admit(const v1::Admission& admission);
  void EndExpired();
  void Remove(uint64_t id, bool sound);
  absl::Status Step(const v1::LogEntry& entry);
  int32_t StepsFor(const std::vector<PlannedSegment>& plan) const;
  absl::Status RunPlan(const std::vector<PlannedSegment>& plan);
  void TakeHistorySlots(std::vector<PlannedSegment>& plan);
  void NoteLoad(bool stepped);
  void ApplyChoices(const PlannedSegment& planned, size_t index, absl::Duration now);
  void SendReports();

  Transformer& model_;
  Communicator& ranks_;
  ControlChannel& control_;
  const EngineOptions options_;
  const Report report_;

  // The replicated state: the engine's thread only.
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  Pacer pacer_;
  StepRunner runner_;
  Seal seal_;
  absl::Duration now_;  // The group's clock.

  // The leader's.
  ReportBuilder reports_;
  Mailbox mailbox_;
  EntryWriter writer_;

  StepClock step_clock_;
  mutable Mutex load_mutex_;
  SchedulerStatistics statistics_ GUARDED_BY(load_mutex_);
  uint64_t steps_ GUARDED_BY(load_mutex_) = 0;
  uint64_t numerical_errors_ GUARDED_BY(load_mutex_) = 0;
  absl::Time last_step_ GUARDED_BY(load_mutex_) = absl::InfinitePast();
};

absl::Status EngineImpl::Run() {
  const absl::Status status = Loop();
  mailbox_.Close();
  return status;
}

absl::Status EngineImpl::Loop() {
  for (uint64_t index = 1;; ++index) {
    ASSIGN_OR_RETURN(const v1::LogEntry entry, NextEntry(index));
    if (entry.index() != index) {
      return absl::InternalError(absl::StrCat("log entry: expected ", index, ", found ", entry.index()));
    }
    now_ = absl::Microseconds(entry.clock_micros());
    RETURN_IF_ERROR(Apply(entry));
    if (entry.shutdown()) {
      // A leader that left first would look lost to a follower that is late. Whoever is gone already has ended, too.
      control_.Barrier(options_.peer_timeout).IgnoreError();
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Step(entry));
    if (leads()) SendReports();
  }
}

absl::StatusOr<v1::LogEntry> EngineImpl::NextEntry(uint64_t index) {
  if (leads()) {
    const bool idle = scheduler_.running() + scheduler_.waiting() == 0;
    v1::LogEntry entry = writer_.Write(index, idle, step_clock_.Read().mean);
    if (ranks_.size() > 1) {
      RETURN_IF_ERROR(control_.Broadcast(entry.SerializeAsString(), options_.peer_timeout).status());
    }
    return entry;
  }
  ASSIGN_OR_RETURN(const std::string message, control_.Broadcast("", options_.peer_timeout));
  v1::LogEntry entry;
  if (!entry.ParseFromString(message)) return absl::InternalError("log entry: not a message");
  return entry;
}

absl::Status EngineImpl::Apply(const v1::LogEntry& entry) {
  for (const v1::Admission& admission : entry.admissions()) RETURN_IF_ERROR(Admit(admission));
  for (const uint64_t id : entry.cancels()) {
    seal_.Mix(~id);
    const RunningSequence* const running = scheduler_.Find(id);
    if (running == nullptr) continue;  // It has ended meanwhile.
    if (leads()) reports_.OnCancelled(*running, now_);
    Remove(id, /*sound=*/true);
  }
  EndExpired();
  return absl::OkStatus();
}

absl::Status EngineImpl::Admit(const v1::Admission& admission) {
  absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(model_.spec(), admission.submit());
  // The leader has checked it: only ranks that differ get here.
  if (!spec.ok()) return absl::InternalError(absl::StrCat("admission: ", std::string(spec.status().message())));
  const uint64_t id = admission.engine_id();
  scheduler_.Add(id, Sequence(*std::move(spec)), TermsOf(admission), now_);
  if (const absl::Duration target = TargetOf(admission); target < absl::InfiniteDuration()) pacer_.Add(id, target);
  seal_.Mix(id);
  return absl::OkStatus();
}

// Those whose time is over, whether they run or wait, end with what they have.
void EngineImpl::EndExpired() {
  for (const uint64_t id : scheduler_.Expired(now_)) {
    seal_.Mix(~id);
    RunningSequence ended = *scheduler_.Find(id);
    const StepOutcome outcome = ended.sequence.EndAtDeadline();
    if (leads()) reports_.OnDenoised(ended, outcome, now_);
    Remove(id, /*sound=*/true);
  }
}

void EngineImpl::Remove(uint64_t id, bool sound) {
  pacer_.Remove(id);
  runner_.history_slots().Release(id);
  CHECK(scheduler_.Remove(id, sound));
}

absl::Status EngineImpl::Step(const v1::LogEntry& entry) {
  std::vector<PlannedSegment> plan = scheduler_.Plan(now_, static_cast<int32_t>(entry.prefill_rows()));
  TakeHistorySlots(plan);
  if (!plan.empty()) {
    const absl::Duration step = absl::Microseconds(entry.step_micros());
    for (const PlannedSegment& planned : plan) {
      Sequence& sequence = planned.running->sequence;
      const uint64_t id = planned.running->id;
      QS_FAILPOINT("engine.poison", sequence.spec().sampling.seed);
      if (planned.segment.denoise) sequence.set_commits_min(pacer_.CommitsMin(id, sequence, now_, step));
      seal_.Mix(id);
      seal_.Mix(static_cast<uint64_t>(planned.segment.first_position) << 32 | planned.segment.rows);
      if (leads()) reports_.OnPlanned(id, planned.segment.denoise, now_);
    }
    if (QS_FAILPOINT("group.skip_step", Place())) return absl::OkStatus();
    step_clock_.Prepare(MonotonicNow());
    const absl::Status ran = RunPlan(plan);
    step_clock_.End();
    RETURN_IF_ERROR(ran);
  }
  NoteLoad(/*stepped=*/false);
  return absl::OkStatus();
}

// A sequence that finds no slots waits until another one has closed its block. Whoever takes some denoises in this
// step, and cannot be preempted from then on until its block closes.
void EngineImpl::TakeHistorySlots(std::vector<PlannedSegment>& plan) {
  std::erase_if(plan, [this](const PlannedSegment& planned) {
    const Sequence& sequence = planned.running->sequence;
    const int32_t rows = sequence.open_block_end() - sequence.open_block_start();
    if (!planned.segment.denoise) return false;
    return sequence.wants_history() && !runner_.history_slots().Acquire(planned.running->id, rows);
  });
}

void EngineImpl::NoteLoad(bool stepped) {
  const SchedulerStatistics statistics = scheduler_.statistics();
  {
    MutexLock lock(load_mutex_);
    statistics_ = statistics;
    if (stepped) {
      ++steps_;
      last_step_ = absl::Now();
    }
  }
  // After the others: Load() may count a sequence twice that has just begun to run, never not at all.
  mailbox_.SetWaiting(statistics.waiting, reports_.unstarted());
}

// Several steps at a time pay only where they repeat little: rows in front of the open blocks run again in each.
int32_t EngineImpl::StepsFor(const std::vector<PlannedSegment>& plan) const {
  constexpr int32_t kCleanRowsMax = 64;
  const bool repeats =
      std::all_of(plan.begin(), plan.end(), [](const PlannedSegment& planned) { return planned.segment.repeats; });
  return repeats && StepBatch::CleanRows(plan) <= kCleanRowsMax ? options_.steps_per_launch_max : 1;
}

absl::Status EngineImpl::RunPlan(const std::vector<PlannedSegment>& plan) {
  const int32_t clean_rows = StepBatch::CleanRows(plan), rows = StepBatch::ShapeOf(plan).rows;
  QS_FAILPOINT("worker.prepare_step", Place());
  RETURN_IF_ERROR(runner_.Prepare(plan));
  step_clock_.Begin(MonotonicNow(), writer_.Expected(rows));
  QS_FAILPOINT("worker.before_step", Place());
  RETURN_IF_ERROR(runner_.Launch(plan, seal_.value(), StepsFor(plan)));
  const int32_t running = scheduler_.running();
  while (true) {
    ASSIGN_OR_RETURN(const bool stepped, runner_.Next());
    if (!stepped) return absl::OkStatus();
    QS_FAILPOINT("worker.after_forward", Place());
    if (scheduler_.running() != running) return absl::InternalError("device: ran on past the end of a sequence");
    const absl::Duration now = MonotonicNow();  // For the leader's timings; decides nothing.
    writer_.Observe(rows - clean_rows, clean_rows, step_clock_.Lap(now));
    for (size_t i = 0; i < plan.size(); ++i) ApplyChoices(plan[i], i, now);
    NoteLoad(/*stepped=*/true);  // Whoever sees an end finds its pages free.
    if (leads()) SendReports();
  }
}

void EngineImpl::ApplyChoices(const PlannedSegment& planned, size_t index, absl::Duration now) {
  Sequence& sequence = planned.running->sequence;
  if (!planned.segment.denoise) return sequence.ApplyPrefill(planned.segment);
  absl::Span<RowChoice> choices = runner_.Choices(index, sequence);
  if (QS_FAILPOINT("engine.nan_row", sequence.spec().sampling.seed)) choices[0].finite = false;
  const StepOutcome outcome = sequence.ApplyDenoise(planned.segment, choices, runner_.tops());
  if (outcome.block_closed) runner_.history_slots().Release(planned.running->id);
  for (const TokenCommit& commit : outcome.commits) {
    seal_.Mix(static_cast<uint64_t>(commit.position) << 32 | static_cast<uint32_t>(commit.token));
  }
  if (leads()) reports_.OnDenoised(*planned.running, outcome, now);
  if (outcome.end == SequenceEndReason::kNone) return;
  const bool sound = outcome.end != SequenceEndReason::kNumericalError;
  if (!sound) {
    MutexLock lock(load_mutex_);
    ++numerical_errors_;
  }
  Remove(planned.running->id, sound);
}

void EngineImpl::SendReports() {
  // An id may be used again as soon as its end is seen.
  for (const SequenceKey& key : reports_.TakeEnded()) mailbox_.Forget(key);
  for (auto& [stream, result] : reports_.TakeResults()) report_(stream, std::move(result));
}

absl::Status EngineImpl::Submit(uint64_t stream, const v1::Submit& submit, int32_t streams) {
  CHECK(leads());
  ASSIGN_OR_RETURN(SequenceSpec spec, MakeSequenceSpec(model_.spec(), submit));
  const Sequence sequence(std::move(spec));
  RETURN_IF_ERROR(CheckFits(limits_, sequence));
  if (const int32_t block = sequence.spec().decoding.block_length, rows = runner_.history_rows();
      sequence.wants_history() && block > rows) {
    return absl::InvalidArgumentError(absl::StrCat("decoding.block_length (", block, ") must be at most ", rows,
                                                   ": the policy keeps the logits of a block"));
  }
  return mailbox_.Submit(stream, submit, streams);
}

EngineLoad EngineImpl::Load() const {
  EngineLoad load;
  load.waiting = static_cast<uint32_t>(mailbox_.waiting());
  load.pages_total = static_cast<uint64_t>(model_.pages());
  load.step_clock = step_clock_.Read();
  MutexLock lock(load_mutex_);
  load.running = static_cast<uint32_t>(statistics_.running);
  load.preempted = static_cast<uint32_t>(statistics_.preempted);
  load.pages_free = static_cast<uint64_t>(statistics_.pages_free + statistics_.pages_cached);
  load.pages_cached = static_cast<uint64_t>(statistics_.pages_cached);
  load.steps = steps_;
  load.last_step = last_step_;
  load.preemptions = statistics_.preemptions;
  load.prefix_query_tokens = statistics_.prefix_query_tokens;
  load.prefix_hit_tokens = statistics_.prefix_hit_tokens;
  load.evictions = statistics_.evictions;
  load.numerical_errors = numerical_errors_;
  return load;
}

}  // namespace

std::unique_ptr<Engine> Engine::Create(Transformer& model, Ops& ops, Communicator& ranks, ControlChannel& control,
                                       const EngineOptions& options, uint64_t epoch, Report report) {
  return std::make_unique<EngineImpl>(model, ops, ranks, control, options, epoch, std::move(report));
}

}  // namespace quicksilver
