#include "coordinator/core/dispatcher.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "coordinator/core/refusals.h"

namespace quicksilver {

Actions Dispatcher::Submit(const Admission& admission, absl::Duration now) {
  CHECK(admission.choices >= 1 && admission.positions() >= 1 && !requests_.contains(admission.id));
  Actions actions;
  const TenantId tenant = tenants_.Find(admission.tenant, now);
  if (std::optional<FailRequest> refusal = Refusal(admission, tenant, now)) {
    actions.emplace_back(std::move(*refusal));
    return actions;
  }
  if (!FitsNow(admission)) MakeRoom(admission, tenant, now, actions);
  Enqueue(admission, tenant, now);
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::Cancel(RequestId request, absl::Duration now) {
  Actions actions;
  if (requests_.contains(request)) Forget(request, /*turned_away=*/false, now, actions);
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::Fail(RequestId request, ApiError error, absl::Duration now) {
  Actions actions;
  if (requests_.contains(request)) FailNow(request, std::move(error), Rejection::kNone, now, actions);
  Settle(now, actions);
  return actions;
}

bool Dispatcher::OnResults(Connection connection, uint64_t epoch, absl::Duration now) {
  GroupState* group = placement_.Find(connection);
  if (group == nullptr || group->facts.epoch != epoch) return false;
  group->last_heard = now;
  return true;
}

std::optional<SequenceOwner> Dispatcher::Owner(Connection connection, SequenceId sequence) const {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end() || it->second.on != connection) return std::nullopt;
  return it->second.owner;
}

Actions Dispatcher::OnProgress(SequenceId id, uint32_t output_tokens, absl::Duration now) {
  Actions actions;
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return actions;
  Sequence& sequence = it->second;
  Choice& choice = requests_.at(sequence.owner.request).choices[sequence.owner.choice];
  choice.output_tokens = std::max(choice.output_tokens, output_tokens);
  if (std::exchange(sequence.progressed, true)) return actions;
  choice.progressed = true;
  choice.losses = 0;
  GroupState& group = *placement_.Find(sequence.on);
  if (std::exchange(sequence.suspect, false)) {
    --group.suspects;
    placement_.Refresh(group, now);
    MarkDirty(*group.model);
  }
  if (group.breaker != CircuitBreaker::State::kClosed) {
    breakers_[group.connection.group].breaker.OnProgress();
    RefreshBreaker(group, now);
  }
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::OnSequenceEnded(SequenceId sequence, uint32_t output_tokens, absl::Duration now) {
  Actions actions;
  SequenceIsOver(sequence, output_tokens, /*tell_worker=*/false, now, actions);
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::EndSequence(SequenceId sequence, uint32_t output_tokens, absl::Duration now) {
  Actions actions;
  SequenceIsOver(sequence, output_tokens, /*tell_worker=*/true, now, actions);
  Settle(now, actions);
  return actions;
}

void Dispatcher::SequenceIsOver(SequenceId id, uint32_t output_tokens, bool tell_worker, absl::Duration now,
                                Actions& actions) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  const Sequence sequence = it->second;
  const Request& request = requests_.at(sequence.owner.request);
  if (tell_worker) actions.emplace_back(CancelSequence{sequence.on, id});
  if (sequence.cause == SubmitCause::kNew) {
    const Admission& admission = request.admission;
    QueueOf(*request.model).times.Add(now - sequence.placed_at, admission.prompt_tokens, admission.max_tokens, now);
  }
  GroupState& group = *placement_.Find(sequence.on);
  if (group.breaker != CircuitBreaker::State::kClosed) {
    breakers_[group.connection.group].breaker.OnProgress();
    RefreshBreaker(group, now);
  }
  ReleaseSequence(id, now);
  EndChoice(sequence.owner, output_tokens, now, actions);
}

void Dispatcher::EndChoice(SequenceOwner owner, uint32_t output_tokens, absl::Duration now, Actions& actions) {
  Request& request = requests_.at(owner.request);
  Choice& choice = request.choices[owner.choice];
  choice.state = Choice::State::kEnded;
  choice.output_tokens = std::max(choice.output_tokens, output_tokens);
  if (++request.ended < request.admission.choices) return;
  actions.emplace_back(CompleteRequest{owner.request});
  Forget(owner.request, /*turned_away=*/false, now, actions);
}

Actions Dispatcher::OnLateUpdate(SequenceOwner owner, bool ended, uint32_t output_tokens, absl::Duration now) {
  Actions actions;
  const auto it = requests_.find(owner.request);
  if (it == requests_.end()) return actions;
  Request& request = it->second;
  Choice& choice = request.choices[owner.choice];
  if (choice.state == Choice::State::kEnded) return actions;
  choice.output_tokens = std::max(choice.output_tokens, output_tokens);
  choice.progressed = true;
  if (request.pool == nullptr && request.left != nullptr) Bind(request, request.left);
  if (ended && choice.state == Choice::State::kRunning) {
    SequenceIsOver(choice.sequence, output_tokens, /*tell_worker=*/true, now, actions);
  } else if (ended) {
    if (choice.state == Choice::State::kWaiting) StopWaiting(request, owner.choice);
    EndChoice(owner, output_tokens, now, actions);
  }
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::OnSequenceReturned(SequenceId id, absl::Duration now) {
  Actions actions;
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return actions;
  const SequenceOwner owner = it->second.owner;
  GroupState& group = *placement_.Find(it->second.on);
  group.gave_back = true;
  ReleaseSequence(id, now);
  Request& request = requests_.at(owner.request);
  Choice& choice = request.choices[owner.choice];
  choice.state = Choice::State::kQueued;
  choice.cause = SubmitCause::kReturned;
  // What its client has seen a part of is not turned away for want of room: it waits, up to its deadline.
  const bool seen = std::any_of(request.choices.begin(), request.choices.end(), [](const Choice& each) {
    return each.progressed || each.state == Choice::State::kEnded;
  });
  if (!seen) ++choice.resumes;
  if (GoesOn(choice)) {
    UnbindIfFree(request);
    Wait(request, owner.choice, now);
  } else {
    FailNow(owner.request,
            OverloadedFor(owner.request, EstimatedWait(request.admission, request.tenant), "No group takes it."),
            Rejection::kNone, now, actions);
  }
  Settle(now, actions);
  return actions;
}

void Dispatcher::Forget(RequestId id, bool turned_away, absl::Duration now, Actions& actions) {
  Request& request = requests_.at(id);
  TokenCounts used{.input = request.started ? request.admission.prompt_tokens : 0u, .output = 0};
  for (uint32_t i = 0; i < request.choices.size(); ++i) {
    Choice& choice = request.choices[i];
    used.output += choice.output_tokens;
    if (choice.state == Choice::State::kWaiting) StopWaiting(request, i);
    if (choice.state != Choice::State::kRunning) continue;
    actions.emplace_back(CancelSequence{sequences_.at(choice.sequence).on, choice.sequence});
    ReleaseSequence(choice.sequence, now);
  }
  if (!request.started) LeaveQueue(request, /*served=*/false);
  tenants_.End(request.tenant, request.reserved, used, turned_away, now);
  SetTimer({TimerKind::kRequest, static_cast<uint64_t>(id)}, request.timer, absl::InfiniteDuration());
  MarkDirty(*request.model);
  requests_.erase(id);
}

void Dispatcher::FailNow(RequestId id, ApiError error, Rejection rejection, absl::Duration now, Actions& actions) {
  actions.emplace_back(FailRequest{id, std::move(error), rejection});
  Forget(id, rejection != Rejection::kNone, now, actions);
}

void Dispatcher::SetTimer(TimerKey key, absl::Duration& timer, absl::Duration next) {
  if (timer == next) return;
  if (timer != absl::InfiniteDuration()) timers_.erase({timer, key});
  if (next != absl::InfiniteDuration()) timers_.emplace(next, key);
  timer = next;
}

Actions Dispatcher::Tick(absl::Duration now) {
  Actions actions;
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const auto [kind, id] = timers_.begin()->second;
    switch (kind) {
      case TimerKind::kLease:
        OnLeaseTimer(GroupId{static_cast<uint32_t>(id)}, now, actions);
        break;
      case TimerKind::kBreaker: {
        Breaker& breaker = breakers_.at(GroupId{static_cast<uint32_t>(id)});
        SetTimer({kind, id}, breaker.timer, absl::InfiniteDuration());
        if (GroupState* group = placement_.Find(GroupId{static_cast<uint32_t>(id)})) RefreshBreaker(*group, now);
        break;
      }
      case TimerKind::kPool:
        OnPatienceEnd(placement_.pool(id), now, actions);
        break;
      case TimerKind::kRequest:
        OnRequestTimer(RequestId{id}, now, actions);
        break;
    }
  }
  Settle(now, actions);
  return actions;
}

void Dispatcher::OnRequestTimer(RequestId id, absl::Duration now, Actions& actions) {
  const Request& request = requests_.at(id);
  if (now >= request.deadline) return FailNow(id, DeadlineExceeded(), Rejection::kNone, now, actions);
  FailNow(
      id,
      OverloadedFor(id, EstimatedWait(request.admission, request.tenant),
                    absl::StrCat("No place became free within ", absl::FormatDuration(options_.queue_time_max), ".")),
      Rejection::kDeadline, now, actions);
}

absl::Duration Dispatcher::NextTick() const {
  return timers_.empty() ? absl::InfiniteDuration() : timers_.begin()->first;
}

bool Dispatcher::HasReadyGroup(const std::string& model) const {
  const GroupModel* found = placement_.FindModel(model);
  return found != nullptr && found->all.usable > 0;
}

Dispatcher::ModelQueue& Dispatcher::QueueOf(const GroupModel& model) {
  while (queues_.size() <= model.number) queues_.emplace_back(options_.ageing);
  return queues_[model.number];
}

void Dispatcher::MarkDirty(const GroupModel& model) {
  if (!std::exchange(QueueOf(model).dirty, true)) dirty_.push_back(model.number);
}

}  // namespace quicksilver
