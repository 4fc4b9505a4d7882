#include "worker/engine/engine.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "quicksilver/v1/group.pb.h"
#include "worker/engine/mailbox.h"
#include "worker/engine/report_builder.h"
#include "worker/engine/scheduler.h"
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

class EngineImpl final : public Engine {
 public:
  EngineImpl(Transformer& model, Ops& ops, Communicator& ranks, ControlChannel& control, const EngineOptions& options,
             uint64_t epoch, Report report)
      : model_(model),
        ranks_(ranks),
        control_(control),
        options_(options),
        report_(std::move(report)),
        scheduler_({options.sequences_max, options.step_rows_max, model.pages(), model.page_size()}),
        runner_(model, ops, ranks, {options.step_rows_max, options.sequences_max, options.steps_per_launch_max}),
        reports_(epoch),
        mailbox_(options.waiting_max),
        pages_free_(static_cast<uint64_t>(model.pages())) {}

  absl::Status Prepare() override { return runner_.Allocate(); }
  absl::Status Run() override;
  absl::Status Submit(uint64_t stream, const v1::Submit& submit) override;
  void Cancel(uint64_t stream, uint64_t sequence_id) override { mailbox_.Cancel({stream, sequence_id}); }
  void CancelStream(uint64_t stream) override { mailbox_.CancelStream(stream); }
  void Shutdown() override { mailbox_.Shutdown(); }
  EngineLoad Load() const override;

 private:
  bool leads() const { return ranks_.rank() == 0; }
  absl::Status Loop();
  absl::StatusOr<v1::LogEntry> NextEntry(uint64_t index);
  v1::LogEntry MakeEntry(uint64_t index);
  absl::Status Apply(const v1::LogEntry& entry, absl::Duration now);
  absl::Status Step();
  int32_t StepsFor(const std::vector<PlannedSegment>& plan) const;
  absl::Status RunPlan(const std::vector<PlannedSegment>& plan);
  void NoteLoad(bool stepped);
  void ApplyChoices(const PlannedSegment& planned, size_t index, absl::Duration now);
  void SendReports();

  Transformer& model_;
  Communicator& ranks_;
  ControlChannel& control_;
  const EngineOptions options_;
  const Report report_;

  // The replicated state: the engine's thread only.
  Scheduler scheduler_;
  StepRunner runner_;
  Seal seal_;
  absl::Duration entry_now_;

  // The leader's.
  ReportBuilder reports_;
  uint64_t last_engine_id_ = 0;
  Mailbox mailbox_;

  mutable Mutex load_mutex_;
  uint32_t running_ GUARDED_BY(load_mutex_) = 0;
  uint64_t pages_free_ GUARDED_BY(load_mutex_);
  uint64_t steps_ GUARDED_BY(load_mutex_) = 0;
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
    entry_now_ = absl::Microseconds(entry.clock_micros());
    RETURN_IF_ERROR(Apply(entry, entry_now_));
    if (entry.shutdown()) {
      // A leader that left first would look lost to a follower that is late. Whoever is gone already has ended, too.
      control_.Barrier(options_.peer_timeout).IgnoreError();
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Step());
    if (leads()) SendReports();
  }
}

absl::StatusOr<v1::LogEntry> EngineImpl::NextEntry(uint64_t index) {
  if (leads()) {
    v1::LogEntry entry = MakeEntry(index);
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

v1::LogEntry EngineImpl::MakeEntry(uint64_t index) {
  const bool idle = scheduler_.running() + scheduler_.waiting() == 0;
  Inbox inbox = mailbox_.Take(idle, options_.idle_beat);
  v1::LogEntry entry;
  entry.set_index(index);
  entry.set_clock_micros(static_cast<uint64_t>(absl::ToInt64Microseconds(MonotonicNow())));
  entry.set_shutdown(inbox.shutdown);
  for (Submission& submission : inbox.submissions) {
    reports_.Admit(++last_engine_id_, submission);
    v1::Admission& admission = *entry.add_admissions();
    admission.set_engine_id(last_engine_id_);
    *admission.mutable_submit() = std::move(submission.submit);
  }
  for (const SequenceKey& key : inbox.cancels) {
    if (inbox.broken_streams.contains(key.first)) continue;
    if (const uint64_t id = reports_.Find(key); id != 0) entry.add_cancels(id);
  }
  for (const uint64_t stream : inbox.broken_streams) {
    for (const uint64_t id : reports_.Mute(stream)) entry.add_cancels(id);
  }
  return entry;
}

absl::Status EngineImpl::Apply(const v1::LogEntry& entry, absl::Duration now) {
  for (const v1::Admission& admission : entry.admissions()) {
    absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(model_.spec(), admission.submit(), options_.finish_blocks);
    // The leader has checked it: only ranks that differ get here.
    if (!spec.ok()) return absl::InternalError(absl::StrCat("admission: ", std::string(spec.status().message())));
    scheduler_.Add(admission.engine_id(), Sequence(*std::move(spec)), {}, now);
    seal_.Mix(admission.engine_id());
  }
  for (const uint64_t id : entry.cancels()) {
    seal_.Mix(~id);
    if (scheduler_.Remove(id) && leads()) reports_.OnCancelled(id, now);
  }
  return absl::OkStatus();
}

absl::Status EngineImpl::Step() {
  const std::vector<PlannedSegment> plan = scheduler_.Plan(entry_now_, options_.step_rows_max);
  if (!plan.empty()) {
    for (const PlannedSegment& planned : plan) {
      seal_.Mix(planned.running->id);
      seal_.Mix(static_cast<uint64_t>(planned.segment.first_position) << 32 | planned.segment.rows);
      if (leads()) reports_.OnPlanned(planned.running->id, planned.segment.denoise, entry_now_);
    }
    RETURN_IF_ERROR(RunPlan(plan));
  }
  NoteLoad(/*stepped=*/false);
  return absl::OkStatus();
}

void EngineImpl::NoteLoad(bool stepped) {
  {
    MutexLock lock(load_mutex_);
    running_ = static_cast<uint32_t>(scheduler_.running());
    pages_free_ = static_cast<uint64_t>(scheduler_.pages_free());
    if (stepped) {
      ++steps_;
      last_step_ = absl::Now();
    }
  }
  // After the others: Load() may count a sequence twice that has just begun to run, never not at all.
  mailbox_.SetWaiting(scheduler_.waiting());
}

// Several steps at a time pay only where they repeat little: rows in front of the open blocks run again in each.
int32_t EngineImpl::StepsFor(const std::vector<PlannedSegment>& plan) const {
  constexpr int32_t kCleanRowsMax = 64;
  const bool denoises =
      std::all_of(plan.begin(), plan.end(), [](const PlannedSegment& planned) { return planned.segment.denoise; });
  return denoises && StepBatch::CleanRows(plan) <= kCleanRowsMax ? options_.steps_per_launch_max : 1;
}

absl::Status EngineImpl::RunPlan(const std::vector<PlannedSegment>& plan) {
  RETURN_IF_ERROR(runner_.Launch(plan, seal_.value(), StepsFor(plan)));
  const int32_t running = scheduler_.running();
  while (true) {
    ASSIGN_OR_RETURN(const bool stepped, runner_.Next());
    if (!stepped) return absl::OkStatus();
    if (scheduler_.running() != running) return absl::InternalError("device: ran on past the end of a sequence");
    const absl::Duration now = MonotonicNow();  // For the leader's timings; decides nothing.
    for (size_t i = 0; i < plan.size(); ++i) ApplyChoices(plan[i], i, now);
    NoteLoad(/*stepped=*/true);  // Whoever sees an end finds its pages free.
    if (leads()) SendReports();
  }
}

void EngineImpl::ApplyChoices(const PlannedSegment& planned, size_t index, absl::Duration now) {
  Sequence& sequence = planned.running->sequence;
  if (!planned.segment.denoise) return sequence.ApplyPrefill(planned.segment);
  const StepOutcome outcome = sequence.ApplyDenoise(planned.segment, runner_.Choices(index, sequence));
  for (const TokenCommit& commit : outcome.commits) {
    seal_.Mix(static_cast<uint64_t>(commit.position) << 32 | static_cast<uint32_t>(commit.token));
  }
  const uint64_t id = planned.running->id;
  if (leads()) reports_.OnDenoised(id, sequence, outcome, now);
  if (outcome.end != SequenceEndReason::kNone) CHECK(scheduler_.Remove(id));
}

void EngineImpl::SendReports() {
  // An id may be used again as soon as its end is seen.
  for (const SequenceKey& key : reports_.TakeEnded()) mailbox_.Forget(key);
  for (auto& [stream, result] : reports_.TakeResults()) report_(stream, std::move(result));
}

absl::Status EngineImpl::Submit(uint64_t stream, const v1::Submit& submit) {
  CHECK(leads());
  ASSIGN_OR_RETURN(SequenceSpec spec, MakeSequenceSpec(model_.spec(), submit, options_.finish_blocks));
  RETURN_IF_ERROR(CheckFits({options_.sequences_max, options_.step_rows_max, model_.pages(), model_.page_size()},
                            Sequence(std::move(spec))));
  return mailbox_.Submit(stream, submit);
}

EngineLoad EngineImpl::Load() const {
  EngineLoad load;
  load.waiting = static_cast<uint32_t>(mailbox_.waiting());
  load.pages_total = static_cast<uint64_t>(model_.pages());
  MutexLock lock(load_mutex_);
  load.running = running_;
  load.pages_free = pages_free_;
  load.steps = steps_;
  load.last_step = last_step_;
  return load;
}

}  // namespace

std::unique_ptr<Engine> Engine::Create(Transformer& model, Ops& ops, Communicator& ranks, ControlChannel& control,
                                       const EngineOptions& options, uint64_t epoch, Report report) {
  return std::make_unique<EngineImpl>(model, ops, ranks, control, options, epoch, std::move(report));
}

}  // namespace quicksilver
