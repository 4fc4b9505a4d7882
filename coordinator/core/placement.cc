#include "coordinator/core/placement.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace quicksilver {
namespace {

// A group with the prefix may be this much busier than one without.
constexpr double kAffinityFactor = 1.25;
constexpr double kAffinityMargin = 0.25;
// Groups with some of the prefix that are looked at for one that has room.
constexpr size_t kHoldersMax = 16;
// One report must not make a group look dead or free.
constexpr double kSpeedMin = 0.25;
constexpr double kSpeedMax = 4.0;
constexpr double kStepWeight = 0.05;  // Of one report in the mean of all groups.

uint64_t Scatter(uint64_t key) {
  uint64_t x = (key + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

double Ratio(uint64_t part, uint64_t whole) { return static_cast<double>(part) / static_cast<double>(whole); }

}  // namespace

void GroupSet::Set(GroupState& group, bool member) {
  uint32_t& place = group.places[slot_];
  if (member == (place != GroupState::kNowhere)) return;
  if (member) {
    place = static_cast<uint32_t>(groups_.size());
    groups_.push_back(&group);
    return;
  }
  groups_[place] = groups_.back();
  groups_[place]->places[slot_] = place;
  groups_.pop_back();
  place = GroupState::kNowhere;
}

bool GroupSet::Contains(const GroupState& group) const {
  const uint32_t place = group.places[slot_];
  return place < groups_.size() && groups_[place] == &group;
}

GroupModel& Placement::ModelOf(const std::string& name) {
  GroupModel*& model = names_[name];
  if (model == nullptr) {
    GroupPool& all = pools_.emplace_back(pools_.size(), 0);
    model = &models_.emplace_back(models_.size(), all);
  }
  return *model;
}

GroupPool& Placement::PoolOf(GroupModel& model, const std::string& fingerprint) {
  GroupPool*& pool = model.pools[fingerprint];
  if (pool == nullptr) pool = &pools_.emplace_back(pools_.size(), 1);
  return *pool;
}

GroupModel* Placement::FindModel(const std::string& model) {
  const auto it = names_.find(model);
  return it == names_.end() ? nullptr : it->second;
}

const GroupModel* Placement::FindModel(const std::string& model) const {
  const auto it = names_.find(model);
  return it == names_.end() ? nullptr : it->second;
}

GroupState& Placement::Join(Connection connection, GroupFacts facts, absl::Duration now) {
  CHECK(!groups_.contains(connection.group));
  GroupState& group = groups_[connection.group];
  group.connection = connection;
  facts.sequences_max = std::max(facts.sequences_max, 1u);
  facts.positions_max = std::max<uint64_t>(facts.positions_max, 1);
  group.model = &ModelOf(facts.model);
  group.pools = {&group.model->all, &PoolOf(*group.model, facts.fingerprint)};
  group.facts = std::move(facts);
  group.last_heard = now;
  group.holder = ++last_holder_;
  holders_[group.holder] = &group;
  return group;
}

void Placement::Leave(GroupId id, absl::Duration now) {
  GroupState& group = groups_.at(id);
  CHECK(group.live.empty() && group.sequences == 0 && group.positions == 0 && group.suspects == 0);
  group.ready = false;
  Refresh(group, now);
  group.model->tripped.erase(id);
  holders_.erase(group.holder);
  groups_.erase(id);
}

GroupState* Placement::Find(GroupId id) {
  const auto it = groups_.find(id);
  return it == groups_.end() ? nullptr : &it->second;
}

GroupState* Placement::Find(Connection connection) {
  GroupState* group = Find(connection.group);
  return group == nullptr || group->connection != connection ? nullptr : group;
}

const GroupState* Placement::Find(Connection connection) const {
  const auto it = groups_.find(connection.group);
  return it == groups_.end() || it->second.connection != connection ? nullptr : &it->second;
}

void Placement::OnBeat(GroupState& group, const GroupBeat& beat, absl::Duration now) {
  ++group.beats;
  group.beat = beat;
  group.ready = beat.ready;
  group.draining = beat.draining;
  group.last_heard = now;
  group.sequences_since = 0;
  group.positions_since = 0;
  group.prompts_since = 0;
  group.gave_back = false;
  group.silent = false;
  if (beat.step_time > absl::ZeroDuration()) {
    const double seconds = absl::ToDoubleSeconds(beat.step_time);
    for (GroupPool* pool : group.pools) {
      double& mean = pool->step_seconds;
      mean = mean == 0 ? seconds : (1 - kStepWeight) * mean + kStepWeight * seconds;
    }
  }
  Refresh(group, now);
}

void Placement::AddSequence(GroupState& group, SequenceId id, const Placing& placing, uint32_t prompt,
                            absl::Duration now) {
  CHECK(group.live.insert(id).second);
  ++group.sequences;
  ++group.sequences_since;
  group.positions += placing.positions;
  group.positions_since += placing.positions;
  group.prompts_since += prompt;
  prefixes_.Record(placing.prefix, group.holder);
  Recount(group, now);
}

void Placement::RemoveSequence(GroupState& group, SequenceId id, uint64_t positions, uint32_t prompt, bool since_beat,
                               absl::Duration now) {
  CHECK(group.live.erase(id) == 1 && group.sequences > 0 && group.positions >= positions);
  --group.sequences;
  group.positions -= positions;
  if (since_beat) {
    --group.sequences_since;
    group.positions_since -= positions;
    group.prompts_since -= prompt;
  }
  Recount(group, now);
}

uint32_t Placement::SlotsOf(const GroupState& group, const GroupPool& pool) {
  if (!group.ready || group.draining) return 0;
  if (group.breaker == CircuitBreaker::State::kClosed || pool.sound == 0) return group.facts.sequences_max;
  return group.breaker == CircuitBreaker::State::kHalfOpen ? 1 : 0;
}

// Pages are taken as sequences grow, so what counts is that the prompt finds some now.
bool Placement::HasRoom(const GroupState& group) {
  if (group.gave_back || group.silent) return false;
  return group.sequences == 0 || !group.beat.positions_free || *group.beat.positions_free > group.prompts_since;
}

void Placement::Refresh(GroupState& group, absl::Duration now) {
  GroupModel& model = *group.model;
  const bool tripped = group.breaker != CircuitBreaker::State::kClosed;
  if (tripped) {
    model.tripped.insert(group.connection.group);
  } else {
    model.tripped.erase(group.connection.group);
  }
  const bool sound = group.ready && !group.draining && !tripped;
  bool first_or_last = false;
  if (sound != group.sound) {
    for (GroupPool* pool : group.pools) {
      pool->sound += sound ? 1u : -1u;
      first_or_last = first_or_last || pool->sound == (sound ? 1u : 0u);
    }
  }
  group.sound = sound;
  Recount(group, now);
  if (!first_or_last) return;
  for (const GroupId id : model.tripped) Recount(groups_.at(id), now);
}

void Placement::Recount(GroupState& group, absl::Duration now) {
  for (size_t level = 0; level < group.pools.size(); ++level) {
    GroupPool& pool = *group.pools[level];
    const uint32_t slots = SlotsOf(group, pool);
    const bool open = slots > group.sequences && HasRoom(group);
    const uint32_t free = open ? slots - group.sequences : 0;
    pool.open.Set(group, open);
    pool.clean.Set(group, open && group.suspects == 0);
    if (group.slots[level] == 0 && slots > 0) ++pool.usable;
    if (group.slots[level] > 0 && slots == 0 && --pool.usable == 0) pool.down_since = now;
    pool.slots += slots;
    pool.slots -= group.slots[level];
    pool.free += free;
    pool.free -= group.free[level];
    group.slots[level] = slots;
    group.free[level] = free;
  }
}

double Placement::Load(const GroupState& group, const GroupPool& pool, uint64_t positions) {
  const GroupBeat& beat = group.beat;
  const uint64_t max = group.facts.positions_max;
  const uint64_t sequences = std::max<uint64_t>(
      group.sequences, uint64_t{beat.sequences_running} + beat.sequences_waiting + group.sequences_since);
  const uint64_t used =
      beat.positions_free ? max - std::min(max, *beat.positions_free) + group.positions_since : group.positions;
  const double load = Ratio(sequences + 1, group.facts.sequences_max) + Ratio(used + positions, max);
  if (pool.step_seconds == 0 || beat.step_time <= absl::ZeroDuration()) return load;
  return load * std::clamp(absl::ToDoubleSeconds(beat.step_time) / pool.step_seconds, kSpeedMin, kSpeedMax);
}

GroupState* Placement::Choose(const GroupPool& pool, const GroupSet& set, const Placing& placing) const {
  const size_t n = set.size();
  if (n == 0) return nullptr;
  const uint64_t random = Scatter(placing.key);
  const size_t first = (random & 0xFFFFFFFFu) % n;
  GroupState* best = &set[first];
  double load = Load(*best, pool, placing.positions);
  if (n == 1) return best;
  GroupState* other = &set[(first + 1 + (random >> 32) % (n - 1)) % n];
  const double other_load = Load(*other, pool, placing.positions);
  if (other_load < load || (other_load == load && other->connection.group < best->connection.group)) {
    best = other;
    load = other_load;
  }
  GroupState* holder = Holder(pool, set, placing, kAffinityFactor * load + kAffinityMargin);
  return holder != nullptr ? holder : best;
}

GroupState* Placement::Holder(const GroupPool& pool, const GroupSet& set, const Placing& placing,
                              double load_max) const {
  PrefixIndex::Holders holders;
  size_t looked_at = 0;
  for (size_t i = placing.prefix.size(); i-- > 0 && looked_at < kHoldersMax;) {
    GroupState* best = nullptr;
    const size_t found = prefixes_.Find(placing.prefix[i], holders);
    looked_at += found;
    for (size_t k = 0; k < found; ++k) {
      const auto it = holders_.find(holders[k]);
      if (it == holders_.end() || !set.Contains(*it->second)) continue;
      const double load = Load(*it->second, pool, placing.positions);
      if (load > load_max) continue;
      best = it->second;
      load_max = load;
    }
    if (best != nullptr) return best;
  }
  return nullptr;
}

void Placement::CheckInvariants() const {
  struct Sums {
    uint64_t sound = 0, usable = 0, slots = 0, free = 0, open = 0;
  };
  std::vector<Sums> sums(pools_.size());
  for (const auto& [id, group] : groups_) {
    CHECK(group.live.size() == group.sequences && group.suspects <= group.sequences);
    CHECK(group.sequences_since <= group.sequences);
    for (size_t level = 0; level < group.pools.size(); ++level) {
      const GroupPool& pool = *group.pools[level];
      const uint32_t free = group.free[level];
      CHECK(group.slots[level] == SlotsOf(group, pool));
      CHECK(pool.open.Contains(group) == (free > 0));
      CHECK(pool.clean.Contains(group) == (free > 0 && group.suspects == 0));
      Sums& sum = sums[pool.number];
      sum.sound += group.sound ? 1 : 0;
      sum.usable += group.slots[level] > 0 ? 1 : 0;
      sum.slots += group.slots[level];
      sum.free += free;
      sum.open += free > 0 ? 1 : 0;
    }
  }
  for (const GroupPool& pool : pools_) {
    const Sums& sum = sums[pool.number];
    CHECK(pool.sound == sum.sound && pool.usable == sum.usable && pool.slots == sum.slots);
    CHECK(pool.free == sum.free && pool.open.size() == sum.open);
  }
}

}  // namespace quicksilver
