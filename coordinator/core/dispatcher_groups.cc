#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "coordinator/core/dispatcher.h"
#include "coordinator/core/refusals.h"

namespace quicksilver {
namespace {

// The loss that ends a request, and the most resumes of a choice whatever its progress.
constexpr uint32_t kLossesMax = 3;
constexpr uint32_t kResumesMax = 8;

// After this part of its lease a group that is silent gets nothing more: groups that one fault cut off together must
// not inherit each other's work.
constexpr double kSilentPart = 0.6;

// A group is a source of moves when it was busy for so many beats; a choice moves for balance so often at most.
constexpr int kBusyBeats = 2;
constexpr uint32_t kMovesMax = 2;
constexpr int kMovesPerBeat = 2;
// With work waiting, a group whose load would be below this part of the source's is a target.
constexpr double kWaitingFactor = 0.8;
// Without, the source must be so much more loaded.
constexpr double kImbalanceFactor = 2.0;
constexpr double kImbalanceMargin = 0.5;
// The youngest that are looked at for one that may move.
constexpr int kYoungest = 16;

}  // namespace

Actions Dispatcher::OnGroupJoined(Connection connection, GroupFacts facts, absl::Duration now) {
  Actions actions;
  if (placement_.Find(connection.group) != nullptr) LoseGroup(connection.group, /*blame=*/true, now, actions);
  GroupState& group = placement_.Join(connection, std::move(facts), now);
  QueueOf(*group.model);
  SetTimer({TimerKind::kLease, static_cast<uint64_t>(connection.group)}, group.timer,
           now + kSilentPart * options_.lease);
  RefreshBreaker(group, now);
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::OnHeartbeat(Connection connection, const GroupBeat& beat, absl::Duration now) {
  Actions actions;
  GroupState* group = placement_.Find(connection);
  if (group == nullptr) return actions;
  if (group->facts.epoch != beat.epoch) {
    actions.emplace_back(
        DropGroup{connection, absl::StrCat("epoch changed from ", group->facts.epoch, " to ", beat.epoch)});
    LoseGroup(connection.group, /*blame=*/true, now, actions);
    Settle(now, actions);
    return actions;
  }
  placement_.OnBeat(*group, beat, now);
  MarkDirty(*group->model);
  Settle(now, actions);
  if (group->draining) {
    Drain(*group, now, actions);
  } else if (group->ready) {
    Rebalance(*group, now, actions);
  }
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::OnGroupLost(Connection connection, absl::Duration now) {
  Actions actions;
  if (placement_.Find(connection) != nullptr) LoseGroup(connection.group, /*blame=*/true, now, actions);
  Settle(now, actions);
  return actions;
}

Actions Dispatcher::OnGroupRemoved(GroupId id, absl::Duration now) {
  Actions actions;
  if (placement_.Find(id) != nullptr) LoseGroup(id, /*blame=*/false, now, actions);
  if (const auto it = breakers_.find(id); it != breakers_.end()) {
    SetTimer({TimerKind::kBreaker, static_cast<uint64_t>(id)}, it->second.timer, absl::InfiniteDuration());
    breakers_.erase(it);
  }
  Settle(now, actions);
  return actions;
}

// A group that leaves as announced speaks neither against itself nor against what it ran.
void Dispatcher::LoseGroup(GroupId id, bool blame, absl::Duration now, Actions& actions) {
  GroupState& group = *placement_.Find(id);
  blame = blame && !group.draining;
  GroupModel& model = *group.model;
  std::vector<SequenceOwner> owners;
  for (const SequenceId sequence : std::set<SequenceId>(group.live)) {
    owners.push_back(sequences_.at(sequence).owner);
    ReleaseSequence(sequence, now);
    Choice& choice = requests_.at(owners.back().request).choices[owners.back().choice];
    choice.state = Choice::State::kQueued;
    choice.cause = SubmitCause::kLost;
    choice.losses += blame ? 1 : 0;
    ++choice.resumes;
  }
  SetTimer({TimerKind::kLease, static_cast<uint64_t>(id)}, group.timer, absl::InfiniteDuration());
  placement_.Leave(id, now);
  if (blame) {
    Breaker& breaker = breakers_[id];
    breaker.breaker.OnFailure(now);
    ArmBreaker(id, now);
  }
  for (const SequenceOwner& owner : owners) {
    const auto it = requests_.find(owner.request);
    if (it == requests_.end()) continue;
    Request& request = it->second;
    if (!GoesOn(request.choices[owner.choice])) {
      FailNow(owner.request, WorkerLost(), Rejection::kNone, now, actions);
      continue;
    }
    UnbindIfFree(request);
    Wait(request, owner.choice, now);
  }
  MarkDirty(model);
}

bool Dispatcher::GoesOn(const Choice& choice) const {
  return choice.losses < kLossesMax && choice.resumes <= kResumesMax;
}

void Dispatcher::ForgiveSilence(absl::Duration now) {
  for (const auto& [id, group] : placement_.groups()) placement_.Find(id)->last_heard = now;
}

void Dispatcher::OnLeaseTimer(GroupId id, absl::Duration now, Actions& actions) {
  GroupState& group = *placement_.Find(id);
  const absl::Duration silent_at = group.last_heard + kSilentPart * options_.lease;
  const absl::Duration end = group.last_heard + options_.lease;
  SetTimer({TimerKind::kLease, static_cast<uint64_t>(id)}, group.timer, silent_at > now ? silent_at : end);
  if (silent_at > now) return;
  if (end > now) {
    group.silent = true;
    return placement_.Refresh(group, now);
  }
  actions.emplace_back(DropGroup{group.connection, absl::StrCat("silent for ", absl::FormatDuration(options_.lease))});
  LoseGroup(id, /*blame=*/true, now, actions);
}

void Dispatcher::ArmBreaker(GroupId id, absl::Duration now) {
  Breaker& breaker = breakers_[id];
  const absl::Duration half_open_at = breaker.breaker.half_open_at();
  SetTimer({TimerKind::kBreaker, static_cast<uint64_t>(id)}, breaker.timer,
           half_open_at > now ? half_open_at : absl::InfiniteDuration());
}

void Dispatcher::RefreshBreaker(GroupState& group, absl::Duration now) {
  const GroupId id = group.connection.group;
  const auto it = breakers_.find(id);
  if (it == breakers_.end()) return;
  group.breaker = it->second.breaker.state(now);
  ArmBreaker(id, now);
  placement_.Refresh(group, now);
  MarkDirty(*group.model);
}

// Oldest first, as far as there is room elsewhere; the others finish here, or move with a later beat.
void Dispatcher::Drain(GroupState& group, absl::Duration now, Actions& actions) {
  const GroupPool& pool = *group.pools[1];
  for (const SequenceId id : std::set<SequenceId>(group.live)) {
    const Sequence& sequence = sequences_.at(id);
    if (sequence.suspect) continue;
    const Placing placing = PlacingOf(requests_.at(sequence.owner.request), sequence.owner.choice);
    GroupState* target = placement_.Choose(pool, pool.open, placing);
    if (target == nullptr) return;
    Move(id, *target, now, actions);
  }
}

void Dispatcher::Rebalance(GroupState& group, absl::Duration now, Actions& actions) {
  GroupPool& pool = *group.pools[1];
  const bool waiting = group.beat.sequences_waiting > 0;
  bool busy = false;
  for (int i = 0; i < kMovesPerBeat && !group.live.empty(); ++i) {
    const uint64_t key = (group.beats << 34) ^ (static_cast<uint64_t>(i) << 32) ^ static_cast<uint64_t>(group.holder);
    const Placing placing{.key = key, .positions = group.positions / group.sequences, .prefix = {}};
    GroupState* target = placement_.Choose(pool, pool.open, placing);
    if (target == nullptr || target == &group || target->beat.sequences_waiting > 0) break;
    const double there = Placement::Load(*target, pool, placing.positions);
    const double here = Placement::Load(group, pool, 0) - 1.0 / group.facts.sequences_max;
    if (waiting ? there > kWaitingFactor * here : here <= kImbalanceFactor * there + kImbalanceMargin) break;
    busy = true;
    if (group.busy_beats + 1 < kBusyBeats || !MoveYoungest(group, *target, now, actions)) break;
  }
  group.busy_beats = busy ? group.busy_beats + 1 : 0;
}

bool Dispatcher::MoveYoungest(GroupState& group, GroupState& target, absl::Duration now, Actions& actions) {
  int looked_at = 0;
  for (auto it = group.live.rbegin(); it != group.live.rend() && looked_at < kYoungest; ++it, ++looked_at) {
    const Sequence& sequence = sequences_.at(*it);
    Choice& choice = requests_.at(sequence.owner.request).choices[sequence.owner.choice];
    if (sequence.suspect || choice.moves >= kMovesMax) continue;
    if (!MayMove(now)) return false;
    ++choice.moves;
    Move(*it, target, now, actions);
    return true;
  }
  return false;
}

// A bucket that fills at the rate and holds a second's worth.
bool Dispatcher::MayMove(absl::Duration now) {
  const double rate = options_.moves_per_second_max;
  moves_left_ = std::min(moves_left_ + rate * absl::ToDoubleSeconds(now - moves_at_), std::max(rate, 1.0));
  moves_at_ = now;
  if (moves_left_ < 1) return false;
  moves_left_ -= 1;
  return true;
}

// The old sequence's results are nobody's from here on.
void Dispatcher::Move(SequenceId id, GroupState& target, absl::Duration now, Actions& actions) {
  const Connection from = sequences_.at(id).on;
  const SequenceOwner owner = sequences_.at(id).owner;
  ReleaseSequence(id, now);
  Request& request = requests_.at(owner.request);
  request.choices[owner.choice].cause = SubmitCause::kMoved;
  StartSequence(request, owner.choice, target, now, actions);
  actions.emplace_back(CancelSequence{from, id});
}

}  // namespace quicksilver
