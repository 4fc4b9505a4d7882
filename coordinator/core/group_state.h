#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/core/circuit_breaker.h"
#include "coordinator/core/generate.h"
#include "coordinator/core/ids.h"
#include "coordinator/core/prefix_index.h"

namespace quicksilver {

/// What a group says about itself when a stream to it begins.
struct GroupFacts {
  uint64_t epoch = 0;
  std::string model;
  std::string fingerprint;
  uint32_t sequences_max = 1;
  uint64_t positions_max = 1;  ///< What its KV cache holds.
};

/// What a group says every second.
struct GroupBeat {
  uint64_t epoch = 0;
  bool ready = false;
  bool draining = false;  ///< Takes nothing new; what it runs is best moved.
  uint32_t sequences_running = 0;
  uint32_t sequences_waiting = 0;          ///< For pages: not yet begun, or preempted.
  std::optional<uint64_t> positions_free;  ///< In its KV cache, kept prefixes included. Unset: it does not say.
  absl::Duration step_time;                ///< Recent mean. 0: none yet.
};

struct GroupState;

/// Groups in no order, to draw from. Each group knows its place in it.
class GroupSet {
 public:
  /// `slot`: of GroupState::places.
  explicit GroupSet(size_t slot) : slot_(slot) {}
  void Set(GroupState& group, bool member);
  bool Contains(const GroupState& group) const;
  size_t size() const { return groups_.size(); }
  GroupState& operator[](size_t i) const { return *groups_[i]; }

 private:
  const size_t slot_;
  std::vector<GroupState*> groups_;
};

/// A choice that has been admitted and waits for a group, in the order of service.
struct WaitingChoice {
  Priority priority = Priority::kDefault;
  uint64_t order = 0;  ///< Of its request's admission.
  RequestId request{};
  uint32_t choice = 0;
  auto operator<=>(const WaitingChoice&) const = default;
};

/// The groups of one model, or those of them with one fingerprint, and the choices that wait for just these.
struct GroupPool {
  GroupPool(size_t number_in, size_t level) : number(number_in), open(2 * level), clean(2 * level + 1) {}

  const size_t number;  ///< In Placement.
  GroupSet open;        ///< Can take a sequence now.
  GroupSet clean;       ///< Those of them that run no suspect.
  uint32_t sound = 0;   ///< Ready groups whose circuit breaker is closed.
  uint32_t usable = 0;  ///< Ready to be given work, full ones included.
  uint64_t slots = 0;   ///< Sequences that those hold.
  uint64_t free = 0;    ///< Of the open ones.
  absl::Duration down_since;
  double step_seconds = 0;  ///< Moving average of what the groups report. 0: nothing yet.
  std::set<WaitingChoice> waiting;
  std::set<WaitingChoice> suspects;                 ///< Wait for a clean group.
  absl::Duration timer = absl::InfiniteDuration();  ///< The dispatcher's, for the end of their patience.
};

struct GroupModel {
  GroupModel(size_t number_in, GroupPool& all_in) : number(number_in), all(all_in) {}

  const size_t number;  ///< Counts models from 0.
  GroupPool& all;
  std::map<std::string, GroupPool*> pools;  ///< By fingerprint.
  std::set<GroupId> tripped;                ///< Groups whose circuit breaker is not closed.
};

struct GroupState {
  static constexpr uint32_t kNowhere = ~0u;

  Connection connection;
  GroupFacts facts;
  bool ready = false;
  bool draining = false;
  uint32_t sequences = 0;  ///< Placed there by this coordinator.
  uint64_t positions = 0;  ///< Reserved by them.
  absl::Duration last_heard;

  uint64_t beats = 0;
  GroupBeat beat;                ///< The last one.
  uint32_t sequences_since = 0;  ///< Placed since.
  uint64_t positions_since = 0;  ///< Reserved by those.
  uint64_t prompts_since = 0;    ///< Their prompts alone, whose pages are wanted at once.
  bool silent = false;           ///< Nothing was heard of it for a good part of its lease.
  bool gave_back = false;        ///< Since the last beat it refused a sequence: it is full.
  int busy_beats = 0;            ///< Beats in a row that made it a source of moves.
  std::set<SequenceId> live;
  uint32_t suspects = 0;  ///< Of those.
  CircuitBreaker::State breaker = CircuitBreaker::State::kClosed;
  PrefixIndex::Holder holder = 0;
  absl::Duration timer = absl::InfiniteDuration();  ///< The dispatcher's, for the lease.

  GroupModel* model = nullptr;
  std::array<GroupPool*, 2> pools = {};  ///< Of the model and of the fingerprint.
  std::array<uint32_t, 4> places = {kNowhere, kNowhere, kNowhere, kNowhere};
  bool sound = false;                  ///< As counted in the pools.
  std::array<uint32_t, 2> slots = {};  ///< The same.
  std::array<uint32_t, 2> free = {};
};

}  // namespace quicksilver
