#include <algorithm>

#include "common/check.h"
#include "coordinator/core/dispatcher.h"
#include "coordinator/core/refusals.h"

namespace quicksilver {
namespace {

// A choice that lost its group so often without progress runs only where no other such one does.
constexpr uint32_t kSuspectLosses = 2;

}  // namespace

// Ends every call: what may run now starts.
void Dispatcher::Settle(absl::Duration now, Actions& actions) {
  for (size_t i = 0; i < dirty_.size(); ++i) {
    GroupModel& model = placement_.model(dirty_[i]);
    QueueOf(model).dirty = false;
    Place(model, now, actions);
    CHECK(QueueOf(model).queued.requests <= options_.queue_requests_max);
  }
  dirty_.clear();
}

void Dispatcher::Place(GroupModel& model, absl::Duration now, Actions& actions) {
  PlaceWaiting(model.all, now, actions);
  for (const auto& [fingerprint, pool] : model.pools) PlaceWaiting(*pool, now, actions);
  FairQueue& fresh = QueueOf(model).fresh;
  while (!fresh.empty() && model.all.open.size() > 0) {
    const RequestId id = fresh.Next();
    if (TooLate(requests_.at(id).admission, now)) {
      FailNow(id, DeadlineExceeded(), Rejection::kDeadline, now, actions);
    } else {
      PlaceFresh(id, model, now, actions);
    }
  }
  if (!fresh.empty()) ArmPatience(model.all, now);
  for (const auto& [fingerprint, pool] : model.pools) {
    if (!pool->waiting.empty() || !pool->suspects.empty()) ArmPatience(*pool, now);
  }
}

void Dispatcher::PlaceWaiting(GroupPool& pool, absl::Duration now, Actions& actions) {
  const auto start = [&](const WaitingChoice& waiting, const GroupSet& groups) {
    Request& request = requests_.at(waiting.request);
    GroupState* group = placement_.Choose(pool, groups, PlacingOf(request, waiting.choice));
    StartSequence(request, waiting.choice, *group, now, actions);
  };
  while (!pool.waiting.empty() && pool.open.size() > 0) start(*pool.waiting.begin(), pool.open);
  while (!pool.suspects.empty() && pool.clean.size() > 0) start(*pool.suspects.begin(), pool.clean);
}

void Dispatcher::PlaceFresh(RequestId id, GroupModel& model, absl::Duration now, Actions& actions) {
  Request& request = requests_.at(id);
  GroupState* group = placement_.Choose(model.all, model.all.open, PlacingOf(request, 0));
  LeaveQueue(request, /*served=*/true);
  request.started = true;
  SetTimer({TimerKind::kRequest, static_cast<uint64_t>(id)}, request.timer, request.deadline);
  StartSequence(request, 0, *group, now, actions);
  for (uint32_t choice = 1; choice < request.choices.size(); ++choice) Wait(request, choice, now);
  PlaceWaiting(*request.pool, now, actions);
}

Placing Dispatcher::PlacingOf(const Request& request, uint32_t choice) {
  const Choice& state = request.choices[choice];
  // Another try draws other groups.
  const uint64_t tries = uint64_t{choice} + (uint64_t{state.resumes + state.moves} << 8);
  return {.key = static_cast<uint64_t>(request.admission.id) ^ (tries << 40),
          .positions = request.admission.positions(),
          .prefix = request.admission.prefix};
}

void Dispatcher::StartSequence(Request& request, uint32_t index, GroupState& group, absl::Duration now,
                               Actions& actions) {
  Choice& choice = request.choices[index];
  const bool suspect = choice.losses >= kSuspectLosses;
  if (choice.state == Choice::State::kWaiting) StopWaiting(request, index);
  if (request.pool == nullptr) Bind(request, group.pools[1]);
  CHECK(request.pool == group.pools[1]);
  const SequenceId id{++last_sequence_};
  const uint32_t prompt = request.admission.prompt_tokens;
  sequences_[id] = {.owner = {request.admission.id, index},
                    .on = group.connection,
                    .positions = request.admission.positions(),
                    .prompt = prompt,
                    .placed_at = now,
                    .beat = group.beats,
                    .cause = choice.cause,
                    .progressed = false,
                    .suspect = suspect};
  if (suspect) ++group.suspects;
  placement_.AddSequence(group, id, PlacingOf(request, index), prompt, now);
  choice.state = Choice::State::kRunning;
  choice.sequence = id;
  actions.emplace_back(SubmitSequence{.to = group.connection,
                                      .sequence = id,
                                      .request = request.admission.id,
                                      .choice = index,
                                      .cause = choice.cause,
                                      .resume = choice.progressed});
}

void Dispatcher::ReleaseSequence(SequenceId id, absl::Duration now) {
  const auto it = sequences_.find(id);
  const Sequence& sequence = it->second;
  GroupState& group = *placement_.Find(sequence.on);
  if (sequence.suspect) --group.suspects;
  placement_.RemoveSequence(group, id, sequence.positions, sequence.prompt, sequence.beat == group.beats, now);
  MarkDirty(*group.model);
  sequences_.erase(it);
}

std::set<WaitingChoice>& Dispatcher::LaneOf(const Request& request, uint32_t choice) const {
  GroupPool& pool = PoolOf(request);
  return request.choices[choice].losses >= kSuspectLosses ? pool.suspects : pool.waiting;
}

// Behind older requests of its class, ahead of all that have not begun.
void Dispatcher::Wait(Request& request, uint32_t index, absl::Duration now) {
  Choice& choice = request.choices[index];
  choice.state = Choice::State::kWaiting;
  choice.waiting_since = now;
  CHECK(LaneOf(request, index).insert({request.admission.priority, request.order, request.admission.id, index}).second);
  MarkDirty(*request.model);
  ArmPatience(PoolOf(request), now);
}

void Dispatcher::StopWaiting(Request& request, uint32_t index) {
  CHECK(LaneOf(request, index).erase({request.admission.priority, request.order, request.admission.id, index}) == 1);
  request.choices[index].state = Choice::State::kQueued;
}

// `pool`: null means any group of the model.
void Dispatcher::Bind(Request& request, GroupPool* pool) {
  std::vector<uint32_t> waiting;
  for (uint32_t i = 0; i < request.choices.size(); ++i) {
    if (request.choices[i].state == Choice::State::kWaiting) waiting.push_back(i);
  }
  for (const uint32_t i : waiting) StopWaiting(request, i);
  request.pool = pool;
  for (const uint32_t i : waiting) Wait(request, i, request.choices[i].waiting_since);
}

// A request of which nothing was seen yet may begin anew with any fingerprint.
void Dispatcher::UnbindIfFree(Request& request) {
  const auto binds = [](const Choice& choice) {
    return choice.progressed || choice.state == Choice::State::kRunning || choice.state == Choice::State::kEnded;
  };
  if (std::any_of(request.choices.begin(), request.choices.end(), binds)) return;
  if (request.pool != nullptr) request.left = request.pool;
  Bind(request, nullptr);
}

// While no group of the pool is usable, those who wait for one do not wait for ever.
void Dispatcher::ArmPatience(GroupPool& pool, absl::Duration now) {
  if (pool.usable > 0 || pool.timer != absl::InfiniteDuration()) return;
  SetTimer({TimerKind::kPool, pool.number}, pool.timer, std::max(now, pool.down_since) + options_.resume_wait);
}

void Dispatcher::OnPatienceEnd(GroupPool& pool, absl::Duration now, Actions& actions) {
  SetTimer({TimerKind::kPool, pool.number}, pool.timer, absl::InfiniteDuration());
  if (pool.usable > 0) return;
  absl::Duration next = absl::InfiniteDuration();
  const auto judge = [&](RequestId id, absl::Duration since, ApiError error, Rejection rejection) {
    const absl::Duration end = std::max(since, pool.down_since) + options_.resume_wait;
    if (end > now) {
      next = std::min(next, end);
    } else {
      FailNow(id, std::move(error), rejection, now, actions);
    }
  };
  std::vector<WaitingChoice> waiting(pool.waiting.begin(), pool.waiting.end());
  waiting.insert(waiting.end(), pool.suspects.begin(), pool.suspects.end());
  for (const WaitingChoice& each : waiting) {
    const auto it = requests_.find(each.request);
    if (it == requests_.end()) continue;  // Another choice of it failed just now.
    judge(each.request, it->second.choices[each.choice].waiting_since, WorkerLost(), Rejection::kNone);
  }
  for (const GroupModel& model : placement_.models()) {
    if (&model.all != &pool) continue;
    for (const RequestId id : QueueOf(model).fresh.Requests()) {
      judge(id, pool.down_since, NoReadyWorkerFor(id, requests_.at(id).admission.model), Rejection::kNoWorker);
    }
  }
  if (pool.timer == absl::InfiniteDuration()) SetTimer({TimerKind::kPool, pool.number}, pool.timer, next);
}

}  // namespace quicksilver
