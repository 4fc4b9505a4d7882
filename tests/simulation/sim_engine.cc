#include "tests/simulation/sim_engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "tests/simulation/random.h"
#include "worker/engine/submission.h"

namespace quicksilver::simulation {
namespace {

uint64_t Micros(absl::Duration time) { return static_cast<uint64_t>(absl::ToInt64Microseconds(time)); }

SchedulerLimits LimitsOf(const Plan& plan, const GroupPlan& group) {
  SchedulerLimits limits;
  limits.sequences_max = group.sequences_max;
  limits.step_rows_max = group.step_rows_max;
  limits.pages = group.pages;
  limits.page_size = plan.page_size;
  limits.share_prefixes = plan.model.grid == BlockGrid::kAbsolute;
  return limits;
}

}  // namespace

std::vector<RunningSequence> Replica::Apply(const v1::LogEntry& entry, bool leak) {
  const absl::Duration now = absl::Microseconds(entry.clock_micros());
  for (const v1::Admission& admission : entry.admissions()) {
    absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(model_, admission.submit());
    CHECK(spec.ok());  // The leader has checked it.
    scheduler_.Add(admission.engine_id(), Sequence(*std::move(spec)), TermsOf(admission), now);
    const absl::Duration target = TargetOf(admission);
    if (target < absl::InfiniteDuration()) pacer_.Add(admission.engine_id(), target);
  }
  std::vector<RunningSequence> cancelled;
  for (const uint64_t id : entry.cancels()) {
    const RunningSequence* found = scheduler_.Find(id);
    if (found == nullptr) continue;
    cancelled.push_back(*found);
    if (!leak) Remove(id, /*sound=*/true);
  }
  return cancelled;
}

std::vector<Replica::Expired> Replica::Expire(const v1::LogEntry& entry) {
  std::vector<Expired> expired;
  for (const uint64_t id : scheduler_.Expired(absl::Microseconds(entry.clock_micros()))) {
    RunningSequence over = *scheduler_.Find(id);
    StepOutcome outcome = over.sequence.EndAtDeadline();
    expired.push_back({std::move(over), std::move(outcome)});
    Remove(id, /*sound=*/true);
  }
  return expired;
}

const std::vector<PlannedSegment>& Replica::Plan(const v1::LogEntry& entry) {
  const absl::Duration now = absl::Microseconds(entry.clock_micros());
  const std::vector<PlannedSegment>& plan = scheduler_.Plan(now, static_cast<int32_t>(entry.prefill_rows()));
  for (const PlannedSegment& planned : plan) {
    if (!planned.segment.denoise) continue;
    Sequence& sequence = planned.running->sequence;
    sequence.set_commits_min(
        pacer_.CommitsMin(planned.running->id, sequence, now, absl::Microseconds(entry.step_micros())));
  }
  return plan;
}

void Replica::Remove(uint64_t id, bool sound) {
  CHECK(scheduler_.Remove(id, sound));
  pacer_.Remove(id);
}

SimEngine::SimEngine(World& world, History& history, const simulation::Plan& plan, const GroupPlan& group,
                     uint64_t epoch, const std::string& fingerprint, Mutant mutant)
    : world_(world),
      history_(history),
      plan_(plan),
      group_(group),
      mutant_(mutant),
      build_(BuildOf(fingerprint)),
      limits_(LimitsOf(plan, group)),
      leader_(plan.model, limits_),
      reports_(epoch),
      step_times_(plan.model.block_length, group.step_rows_max),
      kv_(group.pages, plan.page_size, plan.model.block_length) {
  if (plan.seed % 4 == 0) follower_.emplace(plan.model, limits_);
  for (const RequestPlan& request : plan.requests) numbers_[SeedOf(plan, request)] = request.number;
}

absl::Status SimEngine::Submit(uint64_t stream, const v1::Submit& submit, int streams) {
  absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(plan_.model, submit);
  if (!spec.ok()) return spec.status();
  if (absl::Status fits = CheckFits(limits_, Sequence(*std::move(spec))); !fits.ok()) return fits;
  const SequenceKey key(stream, submit.sequence_id());
  const int32_t share = std::max(1, group_.waiting_max / std::max(1, streams));
  if (unstarted_[stream] >= share) return absl::ResourceExhaustedError("too many sequences wait");
  if (!known_.insert(key).second) return absl::InvalidArgumentError("the sequence id is in use");
  submissions_.push_back({stream, submit, world_.now() + group_.clock_offset});
  ++unstarted_[stream];
  return absl::OkStatus();
}

void SimEngine::Cancel(uint64_t stream, uint64_t sequence_id) {
  if (known_.contains({stream, sequence_id})) cancels_.insert({stream, sequence_id});
}

void SimEngine::CancelStream(uint64_t stream) {
  const auto first = known_.lower_bound({stream, 0});
  if (first != known_.end() && first->first == stream) broken_.insert(stream);
}

bool SimEngine::idle() const {
  const Scheduler& scheduler = leader_.scheduler();
  return scheduler.running() + scheduler.waiting() == 0 && submissions_.empty() && cancels_.empty() && broken_.empty();
}

v1::LogEntry SimEngine::MakeEntry(absl::Duration now) {
  v1::LogEntry entry;
  entry.set_index(++index_);
  entry.set_clock_micros(Micros(now));
  entry.set_step_micros(Micros(mean_step_));
  const bool beside = denoise_rows_ > 0;
  const absl::Duration target = std::max(absl::Milliseconds(50), 2 * step_times_.Expected(denoise_rows_));
  entry.set_prefill_rows(
      static_cast<uint32_t>(beside ? step_times_.PrefillRows(target, denoise_rows_) : group_.step_rows_max));
  for (Submission& submission : std::exchange(submissions_, {})) {
    reports_.Admit(++last_id_, submission);
    v1::Admission& admission = *entry.add_admissions();
    admission.set_engine_id(last_id_);
    admission.set_received_micros(Micros(submission.submitted));
    salts_[last_id_] = submission.submit.cache_salt();
    // What the pages may be shared by is the tenant's affair, whatever a planted bug writes into the message.
    if (mutant_ == Mutant::kSharePrefixes) {
      const RequestPlan& request = *history_.requests().at(numbers_.at(submission.submit.sampling().seed())).plan;
      salts_[last_id_] = SubmitOf(plan_, request, 0).cache_salt();
    }
    last_served_[last_id_] = now;
    *admission.mutable_submit() = std::move(submission.submit);
  }
  for (const SequenceKey& key : std::exchange(cancels_, {})) {
    if (broken_.contains(key.first)) continue;
    if (const uint64_t id = reports_.Find(key); id != 0) entry.add_cancels(id);
  }
  for (const uint64_t stream : std::exchange(broken_, {})) {
    for (const uint64_t id : reports_.Mute(stream)) entry.add_cancels(id);
  }
  return entry;
}

absl::Duration SimEngine::Begin(absl::Duration now) {
  CHECK(running_.empty());
  began_ = now;
  const v1::LogEntry entry = MakeEntry(now);
  for (const RunningSequence& cancelled : leader_.Apply(entry, mutant_ == Mutant::kLeakPages)) {
    reports_.OnCancelled(cancelled, now);
    if (mutant_ == Mutant::kLeakPages) ghosts_.insert(cancelled.id);
  }
  for (const Replica::Expired& expired : leader_.Expire(entry)) {
    if (ghosts_.contains(expired.sequence.id)) continue;
    reports_.OnDenoised(expired.sequence, expired.outcome, now);
  }
  std::vector<PlannedSegment> plan = leader_.Plan(entry);
  Follow(entry, plan);
  std::erase_if(plan, [this](const PlannedSegment& planned) { return ghosts_.contains(planned.running->id); });
  CheckPages();
  if (world_.violation()) return absl::ZeroDuration();
  if (plan.empty()) {
    unstarted_ = reports_.unstarted();
    denoise_rows_ = prefill_rows_ = 0;
    if (leader_.scheduler().running() + leader_.scheduler().waiting() > 0 && ghosts_.empty()) {
      world_.Violate(0, "progress", "an engine with live sequences plans nothing");
    }
    return absl::ZeroDuration();
  }
  for (const PlannedSegment& planned : plan) {
    reports_.OnPlanned(planned.running->id, planned.segment.denoise, now);
    last_served_[planned.running->id] = now;
  }
  CheckService(now);
  RunModel(plan);
  return group_.step_base + group_.step_row * (denoise_rows_ + prefill_rows_);
}

void SimEngine::RunModel(const std::vector<PlannedSegment>& plan) {
  std::vector<FakeKv::Rows> rows;
  denoise_rows_ = prefill_rows_ = 0;
  for (const PlannedSegment& planned : plan) {
    const RunningSequence& running = *planned.running;
    const int32_t count = planned.segment.rows * (running.sequence.guided() ? 2 : 1);
    (planned.segment.denoise ? denoise_rows_ : prefill_rows_) += count;
    rows.push_back(
        {running.id, salts_.at(running.id), &running.sequence, planned.segment, running.pages, running.guide_pages});
  }
  if (denoise_rows_ + prefill_rows_ > group_.step_rows_max) {
    return world_.Violate(
        0, "bound", absl::StrCat("a step of ", denoise_rows_ + prefill_rows_, " rows, at most ", group_.step_rows_max));
  }
  if (std::string wrong = kv_.Forward(rows); !wrong.empty()) return world_.Violate(0, "pages", wrong);
  for (size_t i = 0; i < plan.size(); ++i) {
    Planned planned{plan[i], {}};
    const Sequence& sequence = plan[i].running->sequence;
    if (plan[i].segment.denoise) {
      const RequestPlan& request = *history_.requests().at(RequestOf(sequence)).plan;
      for (const RowAsk& ask : sequence.asked()) {
        planned.choices.push_back(Choose(sequence.PlaceOf(ask.position), rows[i].context, build_));
        planned.choices.back().finite = sequence.forwards() != request.nan_at;
      }
    }
    running_.push_back(std::move(planned));
  }
}

uint64_t SimEngine::RequestOf(const Sequence& sequence) const { return numbers_.at(sequence.spec().sampling.seed); }

uint64_t SimEngine::Poison() const {
  for (const Planned& planned : running_) {
    const Sequence& sequence = planned.segment.running->sequence;
    const uint64_t number = RequestOf(sequence);
    const int poison_at = history_.requests().at(number).plan->poison_at;
    if (planned.segment.segment.denoise && poison_at == sequence.forwards()) return number;
  }
  return 0;
}

void SimEngine::Follow(const v1::LogEntry& entry, const std::vector<PlannedSegment>& plan) {
  if (!follower_) return;
  follower_->Apply(entry, mutant_ == Mutant::kLeakPages);
  follower_->Expire(entry);
  const std::vector<PlannedSegment>& other = follower_->Plan(entry);
  const auto equal = [](const PlannedSegment& a, const PlannedSegment& b) {
    return a.running->id == b.running->id && a.segment.first_position == b.segment.first_position &&
           a.segment.rows == b.segment.rows && a.segment.keys == b.segment.keys &&
           a.segment.denoise == b.segment.denoise && a.running->pages == b.running->pages &&
           a.running->guide_pages == b.running->guide_pages;
  };
  if (!std::equal(plan.begin(), plan.end(), other.begin(), other.end(), equal)) {
    world_.Violate(0, "ranks", absl::StrCat("two ranks plan step ", entry.index(), " differently"));
  }
}

std::set<uint64_t> SimEngine::Holders() const {
  std::set<uint64_t> holders;
  for (const auto& [id, time] : last_served_) {
    const RunningSequence* live = leader_.scheduler().Find(id);
    if (live != nullptr && !live->pages.empty()) holders.insert(id);
  }
  return holders;
}

void SimEngine::ApplyTo(Replica& replica, bool leads, absl::Duration now) {
  for (const Planned& planned : running_) {
    const uint64_t id = planned.segment.running->id;
    // The follower's own sequence of that id.
    auto* running = const_cast<RunningSequence*>(replica.scheduler().Find(id));
    if (!planned.segment.segment.denoise) {
      running->sequence.ApplyPrefill(planned.segment.segment);
      continue;
    }
    const StepOutcome outcome = running->sequence.ApplyDenoise(planned.segment.segment, planned.choices);
    if (leads) reports_.OnDenoised(*running, outcome, now);
    if (outcome.end == SequenceEndReason::kNone) continue;
    const bool sound = outcome.end != SequenceEndReason::kNumericalError;
    if (leads && !sound) kv_.Distrust(id, Holders());
    replica.Remove(id, sound || mutant_ == Mutant::kShareUnsound);
  }
}

void SimEngine::End(absl::Duration now) {
  if (follower_) ApplyTo(*follower_, /*leads=*/false, now);
  ApplyTo(leader_, /*leads=*/true, now);
  running_.clear();
  ++steps_;
  unstarted_ = reports_.unstarted();
  for (const Submission& submission : submissions_) ++unstarted_[submission.stream];
  step_times_.Observe(denoise_rows_, prefill_rows_, now - began_);
  mean_step_ = mean_step_ == absl::ZeroDuration() ? now - began_ : 0.8 * mean_step_ + 0.2 * (now - began_);
}

std::map<uint64_t, v1::StepResult> SimEngine::TakeResults() {
  for (const SequenceKey& key : reports_.TakeEnded()) {
    known_.erase(key);
    cancels_.erase(key);
  }
  return reports_.TakeResults();
}

void SimEngine::CheckPages() {
  const SchedulerStatistics now = statistics();
  if (now.pages_free + now.pages_cached + now.pages_used != group_.pages) {
    world_.Violate(0, "pages",
                   absl::StrCat(now.pages_free, " free, ", now.pages_cached, " cached and ", now.pages_used,
                                " used pages are not ", group_.pages));
  }
  if (now.running > group_.sequences_max) {
    world_.Violate(0, "bound", absl::StrCat(now.running, " sequences run, at most ", group_.sequences_max));
  }
}

void SimEngine::CheckService(absl::Duration now) {
  for (auto it = last_served_.begin(); it != last_served_.end();) {
    const RunningSequence* live = leader_.scheduler().Find(it->first);
    if (live == nullptr) {
      salts_.erase(it->first);
      it = last_served_.erase(it);
      continue;
    }
    history_.counters().unserved_max = std::max(history_.counters().unserved_max, now - it->second);
    if (now - it->second > plan_.starvation_max) {
      world_.Violate(RequestOf(live->sequence), "starvation",
                     absl::StrCat("no row for ", absl::FormatDuration(now - it->second), " on a group that runs"));
    }
    ++it;
  }
}

std::string SimEngine::Residue() const {
  const SchedulerStatistics now = statistics();
  if (now.running + now.waiting == 0 && now.pages_used == 0) return "";
  return absl::StrCat("the scheduler holds ", now.running, " running and ", now.waiting, " waiting sequences, ",
                      now.pages_used, " pages");
}

}  // namespace quicksilver::simulation
