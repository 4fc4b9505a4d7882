#include "tests/simulation/sim_group.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/random.h"
#include "tests/simulation/sim_engine.h"

namespace quicksilver::simulation {
namespace {

constexpr absl::Duration kBeat = absl::Seconds(1);
constexpr absl::Duration kForming = absl::Milliseconds(150);
constexpr absl::Duration kStepDeadline = absl::Seconds(5);

const char* CodeOf(const absl::Status& status) {
  if (absl::IsResourceExhausted(status)) return "server_is_overloaded";
  return absl::IsInvalidArgument(status) ? "invalid_value" : "internal_error";
}

}  // namespace

SimGroup::SimGroup(World& world, Network& network, History& history, const Plan& plan, int number, Mutant mutant)
    : world_(world),
      network_(network),
      history_(history),
      plan_(plan),
      group_(plan.groups[static_cast<size_t>(number)]),
      number_(number),
      mutant_(mutant),
      fingerprint_(group_.fingerprint) {}

SimGroup::~SimGroup() = default;

void SimGroup::Start() {
  if (up()) return;
  if (!next_build_.empty()) fingerprint_ = std::exchange(next_build_, "");
  BeginEpoch();
  if (storm_ > 0) {
    --storm_;
    world_.After(absl::Milliseconds(400), [this, incarnation = incarnation_] {
      if (incarnation == incarnation_) Crash(absl::Seconds(1), /*silently=*/false);
    });
  }
}

void SimGroup::Reform() {
  if (up() && !hung_ && !draining_) BeginEpoch();
}

void SimGroup::BeginEpoch() {
  ++incarnation_;
  ++epoch_;
  engine_ = std::make_unique<SimEngine>(world_, history_, plan_, group_, epoch_, fingerprint_, mutant_);
  stepping_ = hung_ = stuck_ = draining_ = false;
  deferred_.clear();
  world_.Note(0, absl::StrCat("group ", number_, " begins epoch ", epoch_, ", build ", fingerprint_));
  const double phase = UnitOf(Mix(plan_.seed, 21, static_cast<uint64_t>(number_), epoch_));
  world_.After(kForming + kBeat * phase, [this, incarnation = incarnation_] {
    if (incarnation == incarnation_) Beat();
  });
}

void SimGroup::Crash(absl::Duration pause, bool silently) {
  if (!up()) return;
  world_.Note(0, absl::StrCat("group ", number_, " dies"));
  ++incarnation_;
  engine_.reset();
  deferred_.clear();
  for (const uint64_t stream : std::exchange(streams_, {})) network_.Close(stream, Side::kGroup, silently);
  greeted_.clear();
  world_.After(pause, [this, incarnation = incarnation_] {
    if (incarnation == incarnation_) Start();
  });
}

void SimGroup::Hang() {
  if (!up() || hung_) return;
  hung_ = true;
  world_.Note(0, absl::StrCat("group ", number_, " hangs"));
}

void SimGroup::Continue() {
  if (!std::exchange(hung_, false)) return;
  world_.Note(0, absl::StrCat("group ", number_, " goes on"));
  while (!deferred_.empty() && !hung_ && up()) {
    const std::function<void()> work = std::move(deferred_.front());
    deferred_.pop_front();
    work();
  }
}

void SimGroup::Stick() {
  if (!up() || stuck_) return;
  stuck_ = true;
  world_.Note(0, absl::StrCat("the engine of group ", number_, " is stuck"));
  world_.After(kStepDeadline, [this, incarnation = incarnation_] {
    if (incarnation == incarnation_) Crash(absl::Seconds(1), /*silently=*/false);
  });
}

void SimGroup::Drain(absl::Duration grace, const std::string& next_build) {
  if (!up() || draining_) return;
  draining_ = true;
  next_build_ = next_build;
  world_.Note(0, absl::StrCat("group ", number_, " drains"));
  for (const uint64_t stream : greeted_) SendBeat(stream);
  world_.After(grace, [this, incarnation = incarnation_] {
    if (incarnation == incarnation_) Crash(absl::Seconds(1), /*silently=*/false);
  });
}

void SimGroup::LeaveWhenDrained() {
  if (!up() || !draining_ || !engine_->idle() || hung_ || stuck_) return;
  world_.Note(0, absl::StrCat("group ", number_, " has drained"));
  Crash(absl::Seconds(1), /*silently=*/false);
}

void SimGroup::Do(std::function<void()> work) {
  if (!up()) return;
  if (hung_) {
    deferred_.push_back(std::move(work));
    return;
  }
  work();
}

bool SimGroup::OnDialled(uint64_t stream) {
  if (!up()) return false;
  streams_.insert(stream);  // The kernel accepts, even for a process that hangs.
  return true;
}

void SimGroup::OnClosed(uint64_t stream) {
  Do([this, stream] {
    streams_.erase(stream);
    greeted_.erase(stream);
    engine_->CancelStream(stream);
    Wake();
  });
}

void SimGroup::OnMessage(uint64_t stream, const Message& message) {
  Do([this, stream, message = std::get<v1::CoordinatorMessage>(message)] { Handle(stream, message); });
}

void SimGroup::Handle(uint64_t stream, const v1::CoordinatorMessage& message) {
  if (message.has_hello()) {
    greeted_.insert(stream);
    v1::WorkerMessage answer;
    v1::GroupInfo& info = *answer.mutable_info();
    info.set_group(absl::StrCat("group-", number_));
    info.set_epoch(epoch_);
    info.set_fingerprint(fingerprint_);
    info.set_model("m");
    info.set_sequences_max(static_cast<uint32_t>(group_.sequences_max));
    info.set_pages_total(static_cast<uint64_t>(group_.pages));
    info.set_page_size(static_cast<uint32_t>(plan_.page_size));
    info.set_block_length(static_cast<uint32_t>(plan_.model.block_length));
    Send(stream, std::move(answer));
    SendBeat(stream);
  } else if (message.has_submit()) {
    v1::SequenceUpdate refusal = OnSubmit(stream, message.submit());
    if (refusal.has_end()) {
      v1::WorkerMessage answer;
      answer.mutable_step()->set_epoch(epoch_);
      *answer.mutable_step()->add_updates() = std::move(refusal);
      Send(stream, std::move(answer));
    }
  } else {
    engine_->Cancel(stream, message.cancel().sequence_id());
  }
  Wake();
}

v1::SequenceUpdate SimGroup::OnSubmit(uint64_t stream, const v1::Submit& submit) {
  v1::SequenceUpdate refusal;
  absl::Status status = absl::UnavailableError("the group is draining");
  if (!draining_) status = engine_->Submit(stream, submit, static_cast<int>(greeted_.size()));
  if (status.ok()) return refusal;
  refusal.set_sequence_id(submit.sequence_id());
  refusal.mutable_end()->set_reason(v1::SequenceEnd::REASON_ERROR);
  refusal.mutable_end()->set_error_code(draining_ ? "shutting_down" : CodeOf(status));
  refusal.mutable_end()->set_error_message(std::string(status.message()));
  return refusal;
}

void SimGroup::Wake() {
  if (!up() || stepping_ || stuck_ || hung_ || engine_->idle() || world_.violation()) return;
  const absl::Duration time = engine_->Begin(now());
  Report();
  if (time == absl::ZeroDuration()) return LeaveWhenDrained();
  stepping_ = true;
  world_.After(time * slow_, [this, incarnation = incarnation_] {
    if (incarnation == incarnation_) Do([this] { EndStep(); });
  });
}

void SimGroup::EndStep() {
  if (stuck_) return;  // Until the ranks end themselves.
  if (const uint64_t number = engine_->Poison(); number != 0) {
    history_.Killed(number);
    world_.Note(0, absl::StrCat("request ", number, " kills group ", number_));
    return Crash(absl::Seconds(1), /*silently=*/false);
  }
  stepping_ = false;
  engine_->End(now());
  Report();
  LeaveWhenDrained();
  Wake();
}

void SimGroup::Report() {
  for (auto& [stream, result] : engine_->TakeResults()) {
    v1::WorkerMessage message;
    *message.mutable_step() = std::move(result);
    Send(stream, std::move(message));
  }
}

void SimGroup::Beat() {
  if (!hung_) {
    for (const uint64_t stream : greeted_) SendBeat(stream);
  }
  world_.After(kBeat, [this, incarnation = incarnation_] {
    if (incarnation == incarnation_) Beat();
  });
}

void SimGroup::SendBeat(uint64_t stream) {
  const SchedulerStatistics statistics = engine_->statistics();
  v1::WorkerMessage message;
  v1::Heartbeat& beat = *message.mutable_heartbeat();
  beat.set_epoch(epoch_);
  beat.set_ready(true);
  beat.set_draining(draining_);
  beat.set_sequences_running(static_cast<uint32_t>(statistics.running));
  beat.set_sequences_waiting(static_cast<uint32_t>(statistics.waiting));
  beat.set_pages_free(static_cast<uint64_t>(statistics.pages_free + statistics.pages_cached));
  beat.set_pages_cached(static_cast<uint64_t>(statistics.pages_cached));
  beat.set_steps(engine_->steps());
  beat.set_step_seconds(absl::ToDoubleSeconds(engine_->mean_step()));
  Send(stream, std::move(message));
}

void SimGroup::Send(uint64_t stream, v1::WorkerMessage message) {
  network_.Send(stream, Side::kGroup, std::move(message));
}

std::string SimGroup::Residue() const {
  if (!up()) return absl::StrCat("group ", number_, " is down");
  const std::string residue = engine_->Residue();
  return residue.empty() ? "" : absl::StrCat("group ", number_, ": ", residue);
}

}  // namespace quicksilver::simulation
