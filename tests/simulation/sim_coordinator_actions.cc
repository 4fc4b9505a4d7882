#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/random.h"
#include "tests/simulation/sim_coordinator.h"

// How a simulated coordinator carries out what the dispatcher wants, and what it holds it to.

namespace quicksilver::simulation {
namespace {

// The dispatcher recounts its books after so many of its answers.
constexpr uint64_t kRecountEvery = 16;

}  // namespace

void SimCoordinator::Execute(const Actions& actions) {
  for (const Action& action : actions) {
    if (world_.violation()) return;
    std::visit([this](const auto& one) { Carry(one); }, action);
  }
  CheckBooks();
  MeasureFairness();
  if (!world_.violation()) CheckNothingIsIdle();
  if (++executed_ % kRecountEvery == 0) dispatcher_->CheckInvariants();
  ArmTick();
}

v1::Submit SimCoordinator::MakeSubmit(const Live& live, const SubmitSequence& submit) const {
  const RequestPlan& plan = *live.plan;
  const Choice& choice = live.choices[submit.choice];
  v1::Submit message = SubmitOf(plan_, plan, static_cast<int>(submit.choice));
  message.set_sequence_id(static_cast<uint64_t>(submit.sequence));
  if (mutant_ == Mutant::kSharePrefixes) message.set_cache_salt("all");
  if (mutant_ == Mutant::kStarveTenant && plan.tenant != "tenant-2") {
    message.set_tenant(absl::StrCat(plan.tenant, "/", plan.number));
  }
  const absl::Duration spent = world_.now() - history_.requests().at(plan.number).sent;
  const auto left = [&](absl::Duration term) {
    return static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(term - spent)));
  };
  if (mutant_ != Mutant::kIgnoreDeadline) {
    const bool targeted = plan.target > absl::ZeroDuration();
    const absl::Duration term = targeted ? std::min(plan.target, plan.time_max) : plan.time_max;
    if (term < absl::InfiniteDuration()) message.set_deadline_micros(left(term));
    if (targeted) message.set_target_micros(left(plan.target));
  }
  if (submit.resume) {
    v1::Checkpoint& checkpoint = *message.mutable_checkpoint();
    checkpoint.set_step(choice.step);
    checkpoint.set_block_step(choice.block_step);
    if (mutant_ == Mutant::kForgetBlockStep) checkpoint.set_block_step(std::min(choice.block_step, 1u));
    checkpoint.set_final_before(choice.final_before);
    checkpoint.mutable_tokens()->Add(choice.tokens.begin(), choice.tokens.end());
  }
  return message;
}

void SimCoordinator::Carry(const SubmitSequence& submit) {
  const auto it = live_.find(submit.request);
  if (!Expect(it != live_.end(), static_cast<uint64_t>(submit.request), "late", "placed after its end")) return;
  Live& live = it->second;
  const uint64_t number = live.plan->number;
  Choice& choice = live.choices[submit.choice];
  const Place& place = places_[static_cast<uint32_t>(submit.to.group)];
  Expect(place.live && place.connection == submit.to, number, "placement", "placed on a group that was given up");
  Expect(!choice.ended, number, "placement", absl::StrCat("choice ", submit.choice, " placed after its end"));
  Expect(choice.progressed == submit.resume, number, "resume",
         choice.progressed ? "begins anew although there are results" : "resumes from nothing");
  const bool first = choice.current == SequenceId{};
  Expect(first == (submit.cause == SubmitCause::kNew), number, "placement", "a cause that does not fit");
  Expect(first || choice.waits == (submit.cause != SubmitCause::kMoved), number, "placement",
         choice.waits ? "goes on as if it had been moved" : "goes on although its group is not lost");
  choice.waits = false;
  history_.counters().lost += submit.cause == SubmitCause::kLost;
  history_.counters().moved += submit.cause == SubmitCause::kMoved;
  history_.counters().resumed += submit.resume;
  if (world_.tracing()) {
    world_.Note(number,
                absl::StrCat("choice ", submit.choice, " goes to group ", static_cast<uint32_t>(submit.to.group),
                             " as sequence ", static_cast<uint64_t>(submit.sequence), first ? "" : ", again",
                             " from step ", submit.resume ? choice.step : 0));
  }
  if (!std::exchange(live.placed, true)) {
    const size_t positions = live.plan->prompt.size() + static_cast<size_t>(live.plan->tokens_max);
    fairness_.Serve(live.plan->tenant, positions * live.choices.size());
  }
  choice.current = submit.sequence;
  choice.on = submit.to;
  given_[submit.sequence] = {submit.request, submit.choice};
  CheckOneBuild(live, submit.choice, place.fingerprint);
  history_.Placed(number, place.fingerprint);
  v1::CoordinatorMessage message;
  *message.mutable_submit() = MakeSubmit(live, submit);
  network_.Send(place.stream, Side::kCoordinator, std::move(message));
}

// What has shown anything to a client goes on on its own build, and choices are never split over two.
void SimCoordinator::CheckOneBuild(const Live& live, uint32_t number, const std::string& fingerprint) {
  for (uint32_t i = 0; i < live.choices.size(); ++i) {
    const Choice& choice = live.choices[i];
    const std::string& build = history_.requests().at(live.plan->number).build;
    Expect(!choice.progressed || build == fingerprint, live.plan->number, "build",
           absl::StrCat("choice ", i, " has come from `", build, "`, choice ", number, " goes to `", fingerprint, "`"));
    if (i == number || choice.ended || choice.waits || choice.current == SequenceId{}) continue;
    const Place& place = places_[static_cast<uint32_t>(choice.on.group)];
    Expect(place.connection != choice.on || place.fingerprint == fingerprint, live.plan->number, "build",
           absl::StrCat("choice ", i, " runs on `", place.fingerprint, "`, choice ", number, " goes to `", fingerprint,
                        "`"));
  }
}

void SimCoordinator::MarkLost(Connection connection) {
  for (auto& [id, live] : live_) {
    for (Choice& choice : live.choices) {
      if (choice.ended || choice.waits || choice.current == SequenceId{} || choice.on != connection) continue;
      choice.waits = true;
      history_.GroupLost(live.plan->number);
    }
  }
}

void SimCoordinator::Carry(const CancelSequence& cancel) {
  const Place& place = places_[static_cast<uint32_t>(cancel.to.group)];
  if (!Expect(place.live && place.connection == cancel.to, 0, "placement", "a cancel for a group that was given up")) {
    return;
  }
  v1::CoordinatorMessage message;
  message.mutable_cancel()->set_sequence_id(static_cast<uint64_t>(cancel.sequence));
  network_.Send(place.stream, Side::kCoordinator, std::move(message));
}

void SimCoordinator::Carry(const FailRequest& failed) {
  const auto it = live_.find(failed.request);
  const uint64_t number = static_cast<uint64_t>(failed.request);
  if (!Expect(it != live_.end(), number, "second end", "failed after its end: " + failed.error.code)) return;
  if (failed.error.http_status == 503 || failed.error.http_status == 429) {
    Expect(failed.error.retry_after_seconds >= 1, number, "retry", "turned away without a time to come back");
  }
  live_.erase(it);
  world_.Note(number, failed.error.message);
  history_.Failed(number, failed.error.code);
}

void SimCoordinator::Carry(const CompleteRequest& complete) {
  const uint64_t number = static_cast<uint64_t>(complete.request);
  if (!Expect(live_.erase(complete.request) == 1, number, "second end", "completed after its end")) return;
  history_.Completed(number);
}

void SimCoordinator::Carry(const DropGroup& drop) {
  const int group = static_cast<int>(drop.group.group);
  Place& place = places_[static_cast<size_t>(group)];
  if (!Expect(place.connection == drop.group && place.live, 0, "placement", "a group is dropped twice")) return;
  world_.Note(0, absl::StrCat("coordinator ", number_, " gives up group ", group, ": ", drop.reason));
  MarkLost(drop.group);
  // Other threads may be about to hand over what came before the stream is broken.
  const uint64_t stream = place.stream;
  const double late = UnitOf(Mix(plan_.seed, 14, world_.events()));
  world_.After(absl::Milliseconds(300) * late, [this, stream] { network_.Close(stream, Side::kCoordinator); });
  Rest(group);
}

// The dispatcher's numbers against the shell's.
void SimCoordinator::CheckBooks() {
  if (world_.violation() || mutant_ == Mutant::kFinishTwice) return;
  Expect(dispatcher_->requests() == live_.size(), 0, "books",
         absl::StrCat("the dispatcher knows ", dispatcher_->requests(), " requests, the service ", live_.size()));
  Expect(dispatcher_->waiting() <= options_.queue_requests_max + dispatcher_->groups().size(), 0, "bound",
         absl::StrCat(dispatcher_->waiting(), " requests wait, at most ", options_.queue_requests_max));
  Expect(dispatcher_->queue_tokens() <= options_.queue_tokens_max, 0, "bound", "too many tokens wait");
  for (const auto& [id, group] : dispatcher_->groups()) {
    Expect(group.sequences <= group.facts.sequences_max, 0, "bound",
           absl::StrCat("group ", static_cast<uint32_t>(id), " was given ", group.sequences, " sequences, at most ",
                        group.facts.sequences_max));
  }
}

// Nobody waits while a healthy group that he may run on does nothing.
void SimCoordinator::CheckNothingIsIdle() {
  for (const auto& [id, group] : dispatcher_->groups()) {
    const bool healthy = group.ready && !group.draining && group.breaker == CircuitBreaker::State::kClosed;
    if (!healthy || group.gave_back || group.silent || group.sequences > 0) continue;
    for (const auto& [request, live] : live_) {
      const bool bound = std::any_of(live.choices.begin(), live.choices.end(), [](const Choice& choice) {
        return choice.progressed || (choice.current != SequenceId{} && !choice.waits);
      });
      const bool waits = std::any_of(live.choices.begin(), live.choices.end(), [](const Choice& choice) {
        return !choice.ended && (choice.waits || choice.current == SequenceId{});
      });
      const std::string& build = history_.requests().at(live.plan->number).build;
      if (!waits || (bound && build != group.facts.fingerprint)) continue;
      return world_.Violate(live.plan->number, "idle",
                            absl::StrCat("waits although group ", static_cast<uint32_t>(id), " does nothing"));
    }
  }
}

// Positions of the tenant's largest request.
uint64_t SimCoordinator::LargestOf(const std::string& tenant) const {
  uint64_t largest = 0;
  for (const RequestPlan& request : plan_.requests) {
    if (request.tenant != tenant) continue;
    const uint64_t positions = request.prompt.size() + static_cast<uint64_t>(request.tokens_max);
    largest = std::max(largest, positions * static_cast<uint64_t>(request.choices));
  }
  return largest;
}

// Of equal weight and class: two tenants that both wait may be apart by one request of each.
void SimCoordinator::MeasureFairness() {
  if (!plan_.fair || world_.violation()) return;
  std::set<std::string> backlogged;
  for (const auto& [id, live] : live_) {
    if (!live.placed) backlogged.insert(live.plan->tenant);
  }
  fairness_.SetBacklogged(backlogged);
  const FairnessMeter::Lead lead = fairness_.Largest();
  uint64_t most = 0;
  for (const std::string& tenant : {lead.ahead, lead.behind}) most += LargestOf(tenant);
  Expect(lead.amount <= most, 0, "fairness",
         absl::StrCat(lead.ahead, " was given ", lead.amount, " positions more than ", lead.behind,
                      " while both waited, at most ", most));
}

std::string SimCoordinator::Residue() const {
  if (!up()) return absl::StrCat("coordinator ", number_, " is down");
  const Dispatcher& dispatcher = *dispatcher_;
  if (dispatcher.requests() + dispatcher.sequences() + dispatcher.waiting() + dispatcher.running() > 0 ||
      dispatcher.queue_tokens() > 0) {
    return absl::StrCat("coordinator ", number_, " holds ", dispatcher.requests(), " requests, ",
                        dispatcher.sequences(), " sequences, ", dispatcher.queue_tokens(), " queued tokens");
  }
  for (const auto& [id, group] : dispatcher.groups()) {
    if (group.sequences == 0 && group.positions == 0) continue;
    return absl::StrCat("coordinator ", number_, " counts ", group.sequences, " sequences on group ",
                        static_cast<uint32_t>(id));
  }
  return "";
}

}  // namespace quicksilver::simulation
