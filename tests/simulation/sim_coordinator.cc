#include "tests/simulation/sim_coordinator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/random.h"

namespace quicksilver::simulation {
namespace {

constexpr char kModel[] = "m";
constexpr absl::Duration kHelloTimeout = absl::Seconds(5);
// Prompt tokens to a hash of Admission::prefix.
constexpr size_t kPrefixRun = 8;

Priority PriorityOf(v1::Priority priority) {
  if (priority == v1::PRIORITY_INTERACTIVE) return Priority::kInteractive;
  return priority == v1::PRIORITY_BATCH ? Priority::kBatch : Priority::kDefault;
}

std::vector<uint64_t> PrefixOf(const RequestPlan& request) {
  std::vector<uint64_t> chain;
  uint64_t hash = Mix(request.tenant.back(), request.cache_key.size());
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    hash = Mix(hash, static_cast<uint64_t>(request.prompt[i]));
    if ((i + 1) % kPrefixRun == 0) chain.push_back(hash);
  }
  return chain;
}

}  // namespace

SimCoordinator::SimCoordinator(World& world, Network& network, History& history, const Plan& plan, int number,
                               Mutant mutant, std::vector<Endpoint*> groups)
    : world_(world),
      network_(network),
      history_(history),
      plan_(plan),
      number_(number),
      mutant_(mutant),
      clock_offset_(plan.coordinators[static_cast<size_t>(number)]),
      places_(groups.size()) {
  for (size_t g = 0; g < groups.size(); ++g) places_[g].end = groups[g];
  options_.queue_requests_max = plan.queue_requests_max;
  options_.queue_time_max = plan.queue_time_max;
  options_.lease = plan.lease;
  options_.resume_wait = plan.resume_wait;
  options_.target_grace = plan.target_grace;
  if (plan.tenant_requests_max > 0) options_.tenants.unknown.concurrent_requests_max = plan.tenant_requests_max;
}

void SimCoordinator::Start() {
  ++incarnation_;
  dispatcher_.emplace(options_);
  for (size_t g = 0; g < places_.size(); ++g) Dial(static_cast<int>(g));
}

void SimCoordinator::Crash(bool silently) {
  world_.Note(0, absl::StrCat("coordinator ", number_, " dies"));
  ++incarnation_;
  for (auto& [id, live] : live_) history_.Reset(live.plan->number);
  live_.clear();
  given_.clear();
  dispatcher_.reset();
  armed_ = absl::InfiniteDuration();
  fairness_ = {};
  for (const auto& [stream, dialled] : dialled_) network_.Close(stream, Side::kCoordinator, silently);
  dialled_.clear();
  for (Place& place : places_) place = {.end = place.end};
  clock_offset_ += absl::Minutes(7);  // Another machine, for all it knows.
}

void SimCoordinator::Dial(int group) {
  Place& place = places_[static_cast<size_t>(group)];
  place.connection = {GroupId{static_cast<uint32_t>(group)}, ++place.connections};
  place.stream = network_.Dial(number_, group, *this, *place.end);
  dialled_[place.stream] = {group, place.connection};
  v1::CoordinatorMessage hello;
  hello.mutable_hello()->set_coordinator(absl::StrCat("coordinator-", number_));
  network_.Send(place.stream, Side::kCoordinator, hello);
  world_.After(kHelloTimeout, [this, group, stream = place.stream] {
    Place& waiting = places_[static_cast<size_t>(group)];
    if (!up() || waiting.stream != stream || waiting.live) return;
    network_.Close(stream, Side::kCoordinator);
    Rest(group);
  });
}

void SimCoordinator::Rest(int group) {
  Place& place = places_[static_cast<size_t>(group)];
  place.stream = 0;
  place.live = false;
  const absl::Duration pause =
      std::min(absl::Seconds(1), absl::Milliseconds(200) * (1 << std::min(place.failures++, 5)));
  const double jitter = 0.5 + 0.5 * UnitOf(Mix(plan_.seed, 11, static_cast<uint64_t>(number_), place.connections));
  world_.After(pause * jitter, [this, group, incarnation = incarnation_] {
    if (incarnation == incarnation_ && places_[static_cast<size_t>(group)].stream == 0) Dial(group);
  });
}

void SimCoordinator::ArmTick() {
  const absl::Duration next = dispatcher_->NextTick();
  if (next >= armed_ || next == absl::InfiniteDuration()) return;
  armed_ = next;
  // The shell's own thread notices it a little later.
  const double late = UnitOf(Mix(plan_.seed, 12, world_.events()));
  world_.At(next - clock_offset_ + absl::Milliseconds(10) * late, [this, next, incarnation = incarnation_] {
    if (incarnation != incarnation_ || armed_ != next) return;
    armed_ = absl::InfiniteDuration();
    OnTick();
  });
}

void SimCoordinator::OnTick() {
  if (dispatcher_->NextTick() <= now()) return Execute(dispatcher_->Tick(now()));
  ArmTick();
}

void SimCoordinator::Submit(const RequestPlan& request) {
  history_.Sent(request);
  if (!up()) return history_.Reset(request.number);  // Connection refused.
  Live live{.plan = &request};
  live.choices.resize(static_cast<size_t>(request.choices));
  for (Choice& choice : live.choices) choice.final_before = static_cast<uint32_t>(request.prompt.size());
  const RequestId id{request.number};
  live_[id] = std::move(live);
  Admission admission{.id = id,
                      .model = kModel,
                      .tenant = request.tenant,
                      .priority = PriorityOf(request.priority),
                      .choices = static_cast<uint32_t>(request.choices),
                      .prompt_tokens = static_cast<uint32_t>(request.prompt.size()),
                      .max_tokens = static_cast<uint32_t>(request.tokens_max),
                      .accepted = now(),
                      .prefix = PrefixOf(request)};
  if (mutant_ != Mutant::kIgnoreDeadline) {
    admission.time_max = request.time_max;
    if (request.target > absl::ZeroDuration()) admission.latency_target = request.target;
  }
  if (mutant_ == Mutant::kStarveTenant && request.tenant != "tenant-2") {
    absl::StrAppend(&admission.tenant, "/", request.number);
  }
  Execute(dispatcher_->Submit(admission, now()));
}

void SimCoordinator::ClientCancels(uint64_t number) {
  const RequestId id{number};
  if (!live_.contains(id)) return;
  history_.Cancelled(number);
  if (mutant_ == Mutant::kFinishTwice) return;
  live_.erase(id);
  Execute(dispatcher_->Cancel(id, now()));
}

void SimCoordinator::OnClosed(uint64_t stream) {
  const auto it = dialled_.find(stream);
  if (it == dialled_.end()) return;
  const int group = it->second.group;
  Place& place = places_[static_cast<size_t>(group)];
  if (place.stream != stream) return;
  const bool was_live = place.live;
  const Connection connection = place.connection;
  place.live = false;
  if (was_live) {
    world_.Note(0, absl::StrCat("coordinator ", number_, " loses its stream to group ", group));
    MarkLost(connection);
    Execute(dispatcher_->OnGroupLost(connection, now()));
  }
  Rest(group);
}

void SimCoordinator::OnMessage(uint64_t stream, const Message& message) {
  const auto it = dialled_.find(stream);
  if (it == dialled_.end()) return;
  const auto& said = std::get<v1::WorkerMessage>(message);
  const Dialled dialled = it->second;
  if (said.has_info()) {
    if (places_[static_cast<size_t>(dialled.group)].stream == stream) OnInfo(dialled.group, said.info());
  } else if (said.has_heartbeat()) {
    OnBeat(dialled.connection, said.heartbeat());
  } else {
    OnResult(dialled.connection, said.step());
  }
}

void SimCoordinator::OnInfo(int group, const v1::GroupInfo& info) {
  Place& place = places_[static_cast<size_t>(group)];
  place.live = true;
  place.failures = 0;
  place.epoch = info.epoch();
  place.fingerprint = info.fingerprint();
  if (world_.tracing()) {
    world_.Note(0, absl::StrCat("coordinator ", number_, " joins group ", group, " of epoch ", info.epoch(), ", build ",
                                info.fingerprint()));
  }
  GroupFacts facts{.epoch = info.epoch(),
                   .model = info.model(),
                   .fingerprint = info.fingerprint(),
                   .sequences_max = info.sequences_max(),
                   .positions_max = info.pages_total() * info.page_size()};
  Execute(dispatcher_->OnGroupJoined(place.connection, std::move(facts), now()));
}

void SimCoordinator::OnBeat(Connection connection, const v1::Heartbeat& heartbeat) {
  GroupBeat beat{.epoch = heartbeat.epoch(),
                 .ready = heartbeat.ready(),
                 .draining = heartbeat.draining(),
                 .sequences_running = heartbeat.sequences_running(),
                 .sequences_waiting = heartbeat.sequences_waiting(),
                 .positions_free = heartbeat.pages_free() * static_cast<uint64_t>(plan_.page_size),
                 .step_time = absl::Seconds(heartbeat.step_seconds())};
  Execute(dispatcher_->OnHeartbeat(connection, beat, now()));
}

bool SimCoordinator::Expect(bool condition, uint64_t number, const char* rule, const std::string& text) {
  if (!condition) world_.Violate(number, rule, text);
  return condition;
}

void SimCoordinator::OnResult(Connection connection, const v1::StepResult& result) {
  const Place& place = places_[static_cast<uint32_t>(connection.group)];
  const bool fresh = place.live && place.connection == connection && place.epoch == result.epoch();
  const bool accepted = dispatcher_->OnResults(connection, result.epoch(), now());
  if (!Expect(accepted == fresh, 0, "fencing",
              absl::StrCat("coordinator ", number_, accepted ? " takes" : " drops", " results of epoch ",
                           result.epoch(), " from group ", static_cast<uint32_t>(connection.group),
                           fresh ? ", which is alive" : ", which was given up"))) {
    return;
  }
  if (!accepted) history_.counters().stale += static_cast<uint64_t>(result.updates_size());
  if (!accepted && mutant_ != Mutant::kAcceptStaleEpoch) return;
  for (const v1::SequenceUpdate& update : result.updates()) {
    if (world_.violation()) return;
    OnUpdate(update, connection);
  }
  ArmTick();
}

void SimCoordinator::OnUpdate(const v1::SequenceUpdate& update, Connection connection) {
  SequenceId sequence{update.sequence_id()};
  std::optional<SequenceOwner> owner = dispatcher_->Owner(connection, sequence);
  if (!owner && mutant_ == Mutant::kAcceptStaleEpoch && given_.contains(sequence)) {
    const auto& [request, choice] = given_.at(sequence);
    if (live_.contains(request)) owner = SequenceOwner{request, choice};
  }
  if (!owner) {
    ++history_.counters().stale;
    return;
  }
  const auto it = live_.find(owner->request);
  if (!Expect(it != live_.end(), 0, "late",
              absl::StrCat("request ", static_cast<uint64_t>(owner->request), " is over"))) {
    return;
  }
  Live& live = it->second;
  const Choice& choice = live.choices[owner->choice];
  if (!Expect(choice.current == sequence && choice.on == connection, live.plan->number, "fencing",
              absl::StrCat("took a result of sequence ", update.sequence_id(), ", which was given up for ",
                           static_cast<uint64_t>(choice.current)))) {
    return;
  }
  Apply(owner->request, live, owner->choice, update, sequence);
}

void SimCoordinator::Apply(RequestId id, Live& live, uint32_t choice, const v1::SequenceUpdate& update,
                           SequenceId sequence) {
  const v1::SequenceEnd::Reason reason = update.end().reason();
  const bool answered = reason == v1::SequenceEnd::REASON_STOP || reason == v1::SequenceEnd::REASON_LENGTH ||
                        reason == v1::SequenceEnd::REASON_DEADLINE;
  if (update.has_end() && !answered) return OnEnd(id, live, choice, update.end(), sequence);
  const uint64_t number = live.plan->number;
  if (const std::string wrong = Record(live, choice, update); !wrong.empty()) {
    world_.Note(number, wrong);
    return Execute(dispatcher_->Fail(id, InternalError("internal_error", wrong), now()));
  }
  if (world_.violation()) return;
  if (update.has_end()) return OnEnd(id, live, choice, update.end(), sequence);
  const uint32_t tokens = live.choices[choice].final_before - static_cast<uint32_t>(live.plan->prompt.size());
  const int stop_after = live.plan->stop_after;
  if (choice == 0 && stop_after >= 0 && tokens >= static_cast<uint32_t>(stop_after)) {
    live.choices[choice].ended = true;
    history_.ChoiceEnded(number, 0, ChoiceEnd::kStop);
    return Execute(dispatcher_->EndSequence(sequence, tokens, now()));
  }
  Execute(dispatcher_->OnProgress(sequence, tokens, now()));
}

// As the service's streams do it. Says what the worker did wrong.
std::string SimCoordinator::Record(Live& live, uint32_t number, const v1::SequenceUpdate& update) {
  Choice& choice = live.choices[number];
  const uint32_t prompt = static_cast<uint32_t>(live.plan->prompt.size());
  const uint32_t end = prompt + static_cast<uint32_t>(live.plan->tokens_max);
  choice.progressed = true;
  choice.step = update.step();
  choice.block_step = update.block_step();
  int commits = update.commits_size();
  const bool lose = Mix(plan_.seed, 13, update.sequence_id(), update.step()) % 8 == 0;
  if (mutant_ == Mutant::kLoseFinalToken && lose && commits > 0) --commits;
  for (int i = 0; i < commits; ++i) {
    const v1::Commit& commit = update.commits(i);
    if (commit.position() < prompt) return absl::StrCat("commit in the prompt, at ", commit.position());
    const size_t index = commit.position() - prompt;
    if (index >= choice.tokens.size()) choice.tokens.resize(index + 1, -1);
    if (choice.tokens[index] >= 0 && choice.tokens[index] != commit.token()) {
      return absl::StrCat("position ", commit.position(), " changed");
    }
    choice.tokens[index] = commit.token();
    history_.Committed(live.plan->number, static_cast<int>(number), static_cast<int>(index), commit.token());
  }
  uint32_t final_before = update.final_before();
  if (update.has_end()) final_before = std::max(final_before, prompt + update.end().completion_tokens());
  for (; choice.final_before < std::min(final_before, end); ++choice.final_before) {
    const size_t index = choice.final_before - prompt;
    if (index >= choice.tokens.size() || choice.tokens[index] < 0) {
      return absl::StrCat("final position ", choice.final_before, " has no token");
    }
    history_.Final(live.plan->number, static_cast<int>(number), choice.tokens[index]);
  }
  return "";
}

void SimCoordinator::OnEnd(RequestId id, Live& live, uint32_t choice, const v1::SequenceEnd& end, SequenceId sequence) {
  const uint64_t number = live.plan->number;
  const uint32_t tokens = live.choices[choice].final_before - static_cast<uint32_t>(live.plan->prompt.size());
  const bool targeted = live.plan->target > absl::ZeroDuration() && live.plan->target <= live.plan->time_max;
  if (end.reason() == v1::SequenceEnd::REASON_DEADLINE && !targeted) {
    return Execute(dispatcher_->Fail(id, DeadlineExceeded(), now()));
  }
  if (end.reason() == v1::SequenceEnd::REASON_ERROR) {
    // A group that is healthy gives back what it cannot run now.
    if (end.error_code() == "server_is_overloaded" || end.error_code() == "shutting_down") {
      live.choices[choice].waits = true;
      return Execute(dispatcher_->OnSequenceReturned(sequence, now()));
    }
    return Execute(dispatcher_->Fail(id, InternalError(end.error_code(), end.error_message()), now()));
  }
  if (end.reason() == v1::SequenceEnd::REASON_CANCELLED) {
    live.choices[choice].waits = true;
    return Execute(dispatcher_->OnSequenceReturned(sequence, now()));
  }
  live.choices[choice].ended = true;
  Counters& counters = history_.counters();
  counters.preemptions += end.preemptions();
  counters.cached_tokens += end.cached_tokens();
  counters.paced_steps += end.paced_steps();
  counters.targets_met += end.reason() == v1::SequenceEnd::REASON_DEADLINE;
  ChoiceEnd reason = ChoiceEnd::kDeadline;
  if (end.reason() == v1::SequenceEnd::REASON_STOP) reason = ChoiceEnd::kStop;
  if (end.reason() == v1::SequenceEnd::REASON_LENGTH) reason = ChoiceEnd::kLength;
  history_.ChoiceEnded(number, static_cast<int>(choice), reason);
  Execute(dispatcher_->OnSequenceEnded(sequence, tokens, now()));
}

}  // namespace quicksilver::simulation
