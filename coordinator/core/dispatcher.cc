#include "coordinator/core/dispatcher.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace quicksilver {
namespace {

// A fraction in [0, 1) that differs from request to request, so that clients told to come back do not come at once.
double Jitter(RequestId id) {
  uint64_t x = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 31)) * 0xBF58476D1CE4E5B9u;
  return static_cast<double>(x >> 40) / static_cast<double>(1 << 24);
}

ApiError OverloadedFor(RequestId id, absl::Duration wait, std::string message) {
  const double seconds = std::clamp(absl::ToDoubleSeconds(wait), 1.0, 30.0) * (1.0 + 0.5 * Jitter(id));
  return Overloaded(std::move(message), static_cast<int>(std::ceil(seconds)));
}

ApiError NoReadyWorkerFor(RequestId id, const std::string& model) {
  ApiError error = NoReadyWorker(absl::StrCat("No worker group that serves `", model, "` is ready."));
  error.retry_after_seconds = 1 + static_cast<int>(Jitter(id) * 5);
  return error;
}

}  // namespace

Actions Dispatcher::OnGroupJoined(Connection connection, GroupFacts facts, absl::Duration now) {
  Actions actions;
  LoseGroup(connection.group, now, actions);
  facts.sequences_max = std::max(facts.sequences_max, 1u);
  facts.positions_max = std::max<uint64_t>(facts.positions_max, 1);
  groups_[connection.group] = {.connection = connection, .facts = std::move(facts), .last_heard = now};
  return actions;
}

Actions Dispatcher::OnHeartbeat(Connection connection, const GroupBeat& beat, absl::Duration now) {
  Actions actions;
  GroupState* group = Find(connection);
  if (group == nullptr) return actions;
  if (group->facts.epoch != beat.epoch) {
    actions.emplace_back(
        DropGroup{connection, absl::StrCat("epoch changed from ", group->facts.epoch, " to ", beat.epoch)});
    LoseGroup(connection.group, now, actions);
    return actions;
  }
  group->last_heard = now;
  group->ready = beat.ready && !beat.draining;
  group->draining = beat.draining;
  const std::string model = group->facts.model;
  if (group->ready) {
    Place(model, now, actions);
  } else {
    FailWaitingWithoutGroup(model, now, actions);
  }
  return actions;
}

Actions Dispatcher::OnGroupLost(Connection connection, absl::Duration now) {
  Actions actions;
  if (Find(connection) != nullptr) LoseGroup(connection.group, now, actions);
  return actions;
}

Actions Dispatcher::Submit(const Admission& admission, absl::Duration now) {
  CHECK(admission.choices >= 1 && admission.positions() >= 1 && !requests_.contains(admission.id));
  Actions actions;
  if (std::optional<FailRequest> refusal = Refusal(admission, now)) {
    actions.emplace_back(std::move(*refusal));
    return actions;
  }
  Request& request = requests_[admission.id];
  request.admission = admission;
  request.deadline = admission.accepted + std::min(admission.time_max, options_.request_time_max);
  request.queue_deadline = std::min(request.deadline, now + options_.queue_time_max);
  request.timer = absl::InfiniteDuration();
  Queue& queue = queues_[admission.model];
  queue.requests.push_back(admission.id);
  queue.sequences += admission.choices;
  queue_tokens_ += admission.positions() * admission.choices;
  ++queued_;
  SetTimer(admission.id, request);
  Place(admission.model, now, actions);
  return actions;
}

std::optional<FailRequest> Dispatcher::Refusal(const Admission& admission, absl::Duration now) const {
  const RequestId id = admission.id;
  if (stopped_) return FailRequest{id, ShuttingDown(), Rejection::kDraining};
  const absl::Duration time_left = admission.accepted + std::min(admission.time_max, options_.request_time_max) - now;
  if (time_left <= absl::ZeroDuration()) return FailRequest{id, DeadlineExceeded(), Rejection::kDeadline};
  if (!HasReadyGroup(admission.model)) {
    return FailRequest{id, NoReadyWorkerFor(id, admission.model), Rejection::kNoWorker};
  }
  if (FitsNow(admission)) return std::nullopt;

  const absl::Duration wait = EstimatedWait(admission.model, admission.choices);
  if (queued_ >= options_.queue_requests_max) {
    return FailRequest{id,
                       OverloadedFor(id, wait,
                                     absl::StrCat("The queue is full: ", queued_, " requests of at most ",
                                                  options_.queue_requests_max, ".")),
                       Rejection::kQueueFull};
  }
  const uint64_t tokens = admission.positions() * admission.choices;
  if (queue_tokens_ + tokens > options_.queue_tokens_max) {
    return FailRequest{id,
                       OverloadedFor(id, wait,
                                     absl::StrCat("The queue is full: ", queue_tokens_, " tokens wait, ", tokens,
                                                  " more would exceed ", options_.queue_tokens_max, ".")),
                       Rejection::kQueueFull};
  }
  const absl::Duration wait_max = std::min(time_left, options_.queue_time_max);
  if (wait > wait_max) {
    return FailRequest{id,
                       OverloadedFor(id, wait,
                                     absl::StrCat("The wait would be about ", absl::FormatDuration(wait),
                                                  ", more than ", absl::FormatDuration(wait_max), ".")),
                       Rejection::kDeadline};
  }
  return std::nullopt;
}

absl::Duration Dispatcher::EstimatedWait(const std::string& model, uint32_t choices) const {
  const auto queue = queues_.find(model);
  const uint64_t ahead = queue == queues_.end() ? 0 : queue->second.sequences;
  const double slots = static_cast<double>(std::max<uint64_t>(ReadySlots(model), 1));
  return absl::Seconds(sequence_seconds_ * static_cast<double>(ahead + choices) / slots);
}

uint64_t Dispatcher::ReadySlots(const std::string& model) const {
  uint64_t slots = 0;
  for (const auto& [id, group] : groups_) {
    if (group.ready && group.facts.model == model) slots += group.facts.sequences_max;
  }
  return slots;
}

bool Dispatcher::FitsNow(const Admission& admission) const {
  const auto queue = queues_.find(admission.model);
  if (queue != queues_.end() && !queue->second.requests.empty()) return false;
  const GroupState* first = BestGroup(admission.model, nullptr);
  if (first == nullptr) return false;
  uint64_t slots = 0;
  for (const auto& [id, group] : groups_) {
    if (!group.ready || group.facts.model != admission.model) continue;
    if (group.facts.fingerprint == first->facts.fingerprint) slots += group.facts.sequences_max - group.sequences;
  }
  return slots >= admission.choices;
}

bool Dispatcher::HasReadyGroup(const std::string& model) const { return ReadySlots(model) > 0; }

Actions Dispatcher::Cancel(RequestId request, absl::Duration now) {
  Actions actions;
  if (requests_.contains(request)) Forget(request, now, actions);
  return actions;
}

Actions Dispatcher::Fail(RequestId request, ApiError error, absl::Duration now) {
  Actions actions;
  if (requests_.contains(request)) FailNow(request, std::move(error), Rejection::kNone, now, actions);
  return actions;
}

bool Dispatcher::OnResults(Connection connection, uint64_t epoch, absl::Duration now) {
  GroupState* group = Find(connection);
  if (group == nullptr || group->facts.epoch != epoch) return false;
  group->last_heard = now;
  return true;
}

std::optional<SequenceOwner> Dispatcher::Owner(Connection connection, SequenceId sequence) const {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end() || it->second.on != connection) return std::nullopt;
  return it->second.owner;
}

Actions Dispatcher::OnGroupRemoved(GroupId group, absl::Duration now) {
  Actions actions;
  LoseGroup(group, now, actions);
  return actions;
}

Actions Dispatcher::OnProgress(SequenceId, uint32_t, absl::Duration) { return {}; }

TenantRates Dispatcher::Rates(const std::string&, absl::Duration) const { return {}; }

Actions Dispatcher::OnSequenceReturned(SequenceId sequence, absl::Duration now) {
  Actions actions;
  const auto it = sequences_.find(sequence);
  if (it != sequences_.end()) FailNow(it->second.owner.request, WorkerLost(), Rejection::kNone, now, actions);
  return actions;
}

Actions Dispatcher::OnSequenceEnded(SequenceId sequence, uint32_t, absl::Duration now) {
  return SequenceIsOver(sequence, /*tell_worker=*/false, now);
}

Actions Dispatcher::EndSequence(SequenceId sequence, uint32_t, absl::Duration now) {
  return SequenceIsOver(sequence, /*tell_worker=*/true, now);
}

Actions Dispatcher::SequenceIsOver(SequenceId id, bool tell_worker, absl::Duration now) {
  Actions actions;
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return actions;
  const SequenceOwner owner = it->second.owner;
  if (tell_worker) actions.emplace_back(CancelSequence{it->second.on, id});
  const double seconds = absl::ToDoubleSeconds(now - it->second.placed_at);
  sequence_seconds_ = sequence_seconds_ == 0 ? seconds : 0.9 * sequence_seconds_ + 0.1 * seconds;
  ReleaseSequence(id);
  Request& request = requests_.at(owner.request);
  std::erase(request.live, id);
  const std::string model = request.admission.model;
  if (++request.ended == request.admission.choices) {
    actions.emplace_back(CompleteRequest{owner.request});
    Forget(owner.request, now, actions);
  } else {
    Place(model, now, actions);
  }
  return actions;
}

void Dispatcher::ReleaseSequence(SequenceId id) {
  const auto it = sequences_.find(id);
  if (GroupState* group = Find(it->second.on)) {
    --group->sequences;
    group->positions -= it->second.positions;
  }
  sequences_.erase(it);
}

void Dispatcher::LeaveQueue(Request& request) {
  const uint32_t left = request.admission.choices - request.placed;
  if (left == 0) return;
  Queue& queue = queues_.at(request.admission.model);
  std::erase(queue.requests, request.admission.id);
  queue.sequences -= left;
  queue_tokens_ -= request.admission.positions() * left;
  --queued_;
}

void Dispatcher::Forget(RequestId id, absl::Duration now, Actions& actions) {
  const auto it = requests_.find(id);
  Request& request = it->second;
  for (const SequenceId sequence : request.live) {
    const Connection on = sequences_.at(sequence).on;
    if (Find(on) != nullptr) actions.emplace_back(CancelSequence{on, sequence});
    ReleaseSequence(sequence);
  }
  LeaveQueue(request);
  if (request.placed > 0) --running_;
  timers_.erase({request.timer, id});
  const std::string model = request.admission.model;
  requests_.erase(it);
  Place(model, now, actions);
}

void Dispatcher::FailNow(RequestId id, ApiError error, Rejection rejection, absl::Duration now, Actions& actions) {
  actions.emplace_back(FailRequest{id, std::move(error), rejection});
  Forget(id, now, actions);
}

void Dispatcher::Place(const std::string& model, absl::Duration now, Actions& actions) {
  const auto it = queues_.find(model);
  if (it == queues_.end()) return;
  Queue& queue = it->second;
  for (size_t i = 0; i < queue.requests.size();) {
    const RequestId id = queue.requests[i];
    Request& request = requests_.at(id);
    const GroupState* best = BestGroup(model, request.placed > 0 ? &request.fingerprint : nullptr);
    if (best == nullptr) {
      if (request.placed == 0) return;
      ++i;  // Bound to one fingerprint: the others need not wait behind it.
      continue;
    }
    StartSequence(id, request, groups_.at(best->connection.group), now, actions);
    --queue.sequences;
    queue_tokens_ -= request.admission.positions();
    if (request.placed == request.admission.choices) {
      queue.requests.erase(queue.requests.begin() + static_cast<std::ptrdiff_t>(i));
      --queued_;
    }
  }
}

const GroupState* Dispatcher::BestGroup(const std::string& model, const std::string* fingerprint) const {
  const auto load = [](const GroupState& group) {
    return static_cast<double>(group.positions) / static_cast<double>(group.facts.positions_max);
  };
  const GroupState* best = nullptr;
  for (const auto& [id, group] : groups_) {
    if (!group.ready || group.facts.model != model) continue;
    if (group.sequences >= group.facts.sequences_max) continue;
    if (fingerprint != nullptr && group.facts.fingerprint != *fingerprint) continue;
    if (best == nullptr || load(group) < load(*best)) best = &group;
  }
  return best;
}

void Dispatcher::StartSequence(RequestId id, Request& request, GroupState& group, absl::Duration now,
                               Actions& actions) {
  const SequenceId sequence{next_sequence_++};
  const SequenceOwner owner{id, request.placed};
  sequences_[sequence] = {owner, group.connection, request.admission.positions(), now};
  request.live.push_back(sequence);
  ++group.sequences;
  group.positions += request.admission.positions();
  if (request.placed == 0) {
    ++running_;
    request.fingerprint = group.facts.fingerprint;
  }
  ++request.placed;
  SetTimer(id, request);
  actions.emplace_back(
      SubmitSequence{.to = group.connection, .sequence = sequence, .request = id, .choice = owner.choice});
}

// Before its first sequence is placed a request is also bound by the time in the queue.
void Dispatcher::SetTimer(RequestId id, Request& request) {
  const absl::Duration timer = request.placed == 0 ? request.queue_deadline : request.deadline;
  if (timer == request.timer) return;
  timers_.erase({request.timer, id});
  timers_.insert({timer, id});
  request.timer = timer;
}

void Dispatcher::LoseGroup(GroupId id, absl::Duration now, Actions& actions) {
  const auto it = groups_.find(id);
  if (it == groups_.end()) return;
  const GroupState lost = it->second;
  groups_.erase(it);
  std::set<RequestId> requests;
  for (const auto& [sequence, state] : sequences_) {
    if (state.on == lost.connection) requests.insert(state.owner.request);
  }
  for (const RequestId request : requests) FailNow(request, WorkerLost(), Rejection::kNone, now, actions);
  FailWaitingWithoutGroup(lost.facts.model, now, actions);
}

void Dispatcher::FailWaitingWithoutGroup(const std::string& model, absl::Duration now, Actions& actions) {
  if (HasReadyGroup(model)) return;
  const auto it = queues_.find(model);
  if (it == queues_.end()) return;
  const std::deque<RequestId> waiting = it->second.requests;
  for (const RequestId id : waiting) FailNow(id, NoReadyWorkerFor(id, model), Rejection::kNoWorker, now, actions);
}

Actions Dispatcher::Tick(absl::Duration now) {
  Actions actions;
  std::vector<Connection> silent;
  for (auto& [id, group] : groups_) {
    if (now - group.last_heard < options_.lease) continue;
    silent.push_back(group.connection);
    group.ready = false;  // What the others leave behind must not be placed here.
  }
  for (const Connection& connection : silent) {
    actions.emplace_back(DropGroup{connection, absl::StrCat("silent for ", absl::FormatDuration(options_.lease))});
    LoseGroup(connection.group, now, actions);
  }
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const RequestId id = timers_.begin()->second;
    const Request& request = requests_.at(id);
    if (now >= request.deadline) {
      FailNow(id, DeadlineExceeded(), Rejection::kNone, now, actions);
    } else {
      FailNow(id,
              OverloadedFor(
                  id, EstimatedWait(request.admission.model, request.admission.choices),
                  absl::StrCat("No place became free within ", absl::FormatDuration(options_.queue_time_max), ".")),
              Rejection::kDeadline, now, actions);
    }
  }
  return actions;
}

absl::Duration Dispatcher::NextTick() const {
  absl::Duration next = timers_.empty() ? absl::InfiniteDuration() : timers_.begin()->first;
  for (const auto& [id, group] : groups_) next = std::min(next, group.last_heard + options_.lease);
  return next;
}

GroupState* Dispatcher::Find(Connection connection) {
  const auto it = groups_.find(connection.group);
  return it == groups_.end() || it->second.connection != connection ? nullptr : &it->second;
}

}  // namespace quicksilver
