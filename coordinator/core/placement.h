#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/core/group_state.h"
#include "coordinator/core/ids.h"
#include "coordinator/core/prefix_index.h"

namespace quicksilver {

/// A sequence that looks for a group.
struct Placing {
  uint64_t key = 0;  ///< What the draw depends on: equal keys draw equally.
  uint64_t positions = 1;
  absl::Span<const uint64_t> prefix;
};

/// Which groups there are, what each can take, and the choice among them. Nothing here looks at every group: sets and
/// sums are kept as groups change.
///
/// The choice: two groups drawn at random, the less loaded one; but a group that holds more of the prompt's prefix is
/// taken when its load is at most 1.25 times that one's and a little. Load counts sequences, pages (as the last
/// heartbeat said, with what was placed since), and how slow its steps are compared with the others'.
///
/// A group whose circuit breaker is open gets no work, one that is half open a sequence at a time. Only when no group
/// of the pool has a closed one are they treated as if they were: one that may work is better than none.
class Placement {
 public:
  /// Replaces a group of that place. It is not ready.
  GroupState& Join(Connection connection, GroupFacts facts, absl::Duration now);
  /// Requires: nothing live on it.
  void Leave(GroupId id, absl::Duration now);
  /// Null when the connection is an old one.
  GroupState* Find(Connection connection);
  const GroupState* Find(Connection connection) const;
  GroupState* Find(GroupId id);
  const std::map<GroupId, GroupState>& groups() const { return groups_; }
  /// Null: no group of this model was ever here.
  GroupModel* FindModel(const std::string& model);
  const GroupModel* FindModel(const std::string& model) const;
  GroupModel& model(size_t number) { return models_[number]; }
  GroupPool& pool(size_t number) { return pools_[number]; }
  const std::deque<GroupPool>& pools() const { return pools_; }
  const std::deque<GroupModel>& models() const { return models_; }

  void OnBeat(GroupState& group, const GroupBeat& beat, absl::Duration now);
  /// To be called after a change of anything that decides what the group can take.
  void Refresh(GroupState& group, absl::Duration now);
  void AddSequence(GroupState& group, SequenceId id, const Placing& placing, uint32_t prompt, absl::Duration now);
  /// `since_beat`: it was placed after the group's last heartbeat.
  void RemoveSequence(GroupState& group, SequenceId id, uint64_t positions, uint32_t prompt, bool since_beat,
                      absl::Duration now);

  /// Null when the set is empty.
  GroupState* Choose(const GroupPool& pool, const GroupSet& set, const Placing& placing) const;
  /// With a sequence of that many positions more.
  static double Load(const GroupState& group, const GroupPool& pool, uint64_t positions);

  /// Recounts everything.
  void CheckInvariants() const;

 private:
  GroupModel& ModelOf(const std::string& name);
  GroupPool& PoolOf(GroupModel& model, const std::string& fingerprint);
  void Recount(GroupState& group, absl::Duration now);
  static uint32_t SlotsOf(const GroupState& group, const GroupPool& pool);
  static bool HasRoom(const GroupState& group);
  GroupState* Holder(const GroupPool& pool, const GroupSet& set, const Placing& placing, double load_max) const;

  std::map<GroupId, GroupState> groups_;
  std::deque<GroupPool> pools_;  // Models and fingerprints are few, and are kept.
  std::deque<GroupModel> models_;
  std::map<std::string, GroupModel*> names_;
  PrefixIndex prefixes_;
  absl::flat_hash_map<PrefixIndex::Holder, GroupState*> holders_;
  PrefixIndex::Holder last_holder_ = 0;
};

}  // namespace quicksilver
