#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "coordinator/core/api_error.h"
#include "coordinator/core/generate.h"
#include "coordinator/core/ids.h"
#include "coordinator/core/tenants.h"

namespace quicksilver {

struct DispatcherOptions {
  uint32_t queue_requests_max = 1024;                    ///< Requests of which no choice has been on a group.
  uint64_t queue_tokens_max = 4 << 20;                   ///< Prompt and answer tokens of those.
  absl::Duration queue_time_max = absl::Seconds(60);     ///< Until the first sequence is placed.
  absl::Duration request_time_max = absl::Seconds(600);  ///< From acceptance to the end.
  absl::Duration lease = absl::Seconds(5);               ///< A group that is silent for longer is lost.
  absl::Duration resume_wait = absl::Seconds(30);        ///< For a group, while none that fits is ready.
  absl::Duration target_grace = absl::Seconds(2);        ///< Behind a latency target, for the worker's best answer.
  TenantsOptions tenants;
};

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

/// A request as admission sees it.
struct Admission {
  RequestId id{};
  std::string model;
  std::string tenant = "default";
  Priority priority = Priority::kDefault;
  uint32_t choices = 1;
  uint32_t prompt_tokens = 1;
  uint32_t max_tokens = 0;  ///< Of one choice.
  absl::Duration accepted;
  absl::Duration time_max = absl::InfiniteDuration();  ///< The client's deadline, from `accepted`.
  /// From `accepted`: the worker ends the request then with what it has. Only when it does not is it an error,
  /// DispatcherOptions::target_grace later.
  absl::Duration latency_target = absl::InfiniteDuration();
  std::vector<uint64_t> prefix;  ///< PrefixChain() of the prompt. Empty: goes anywhere.

  uint64_t positions() const { return uint64_t{prompt_tokens} + max_tokens; }  ///< Of one choice.
};

/// Why a request was turned away before any work.
enum class Rejection { kNone, kQueueFull, kDeadline, kDraining, kNoWorker, kTenantLimit, kShed };

enum class SubmitCause { kNew, kLost, kMoved };

struct SubmitSequence {
  Connection to;
  SequenceId sequence{};
  RequestId request{};
  uint32_t choice = 0;
  SubmitCause cause = SubmitCause::kNew;
  bool resume = false;  ///< Goes on from its last checkpoint; false: from the prompt's end.
};
struct CancelSequence {
  Connection to;
  SequenceId sequence{};
};
/// The request is over and forgotten: `error` is its end.
struct FailRequest {
  RequestId request{};
  ApiError error;
  Rejection rejection = Rejection::kNone;
};
/// The last choice has ended: the request is over and forgotten.
struct CompleteRequest {
  RequestId request{};
};
/// The group is lost: its stream is to be broken.
struct DropGroup {
  Connection group;
  std::string reason;
};
using Action = std::variant<SubmitSequence, CancelSequence, FailRequest, CompleteRequest, DropGroup>;
/// To be carried out in this order.
using Actions = std::vector<Action>;

struct SequenceOwner {
  RequestId request{};
  uint32_t choice = 0;
};

struct GroupState {
  Connection connection;
  GroupFacts facts;
  bool ready = false;
  bool draining = false;
  uint32_t sequences = 0;  ///< Placed there by this coordinator.
  uint64_t positions = 0;  ///< Reserved by them.
  absl::Duration last_heard;
};

/// Admission, placement and the life of requests, as a state machine without threads, time or wires: each call says
/// what happened, and answers what is to be done. Every submitted request ends with exactly one FailRequest or
/// CompleteRequest, or by Cancel(). `now` counts from any
/// start and never goes back.
class Dispatcher {
 public:
  explicit Dispatcher(const DispatcherOptions& options) : options_(options) {}

  /// A stream to a group began. It gets no work before a heartbeat says that it is ready.
  Actions OnGroupJoined(Connection connection, GroupFacts facts, absl::Duration now);
  Actions OnHeartbeat(Connection connection, const GroupBeat& beat, absl::Duration now);
  /// The stream ended. Every sequence there goes on elsewhere, under a new id; see SubmitSequence.
  Actions OnGroupLost(Connection connection, absl::Duration now);
  /// The group's place is gone for good (its address left the list): it is lost if it was there, and its id is never
  /// used again.
  Actions OnGroupRemoved(GroupId group, absl::Duration now);

  /// Admits and places, or fails at once. Requires: choices >= 1, positions() >= 1, an id that was never used.
  Actions Submit(const Admission& admission, absl::Duration now);
  /// The client is gone: no FailRequest follows.
  Actions Cancel(RequestId request, absl::Duration now);
  /// Ends a request that its worker or the service found faulty.
  Actions Fail(RequestId request, ApiError error, absl::Duration now);

  /// Results came in: renews the lease. False when the connection or the epoch is an old one; drop them then.
  bool OnResults(Connection connection, uint64_t epoch, absl::Duration now);
  /// Whose sequence this is, or nothing when it is not alive on that connection: its results are to be dropped then.
  std::optional<SequenceOwner> Owner(Connection connection, SequenceId sequence) const;
  /// The sequence went beyond the checkpoint it began at; to be called for every update that is not its last.
  /// `output_tokens`: of this choice so far, those of earlier groups included.
  Actions OnProgress(SequenceId sequence, uint32_t output_tokens, absl::Duration now);
  /// The worker has ended it. `output_tokens`: of this choice, those of earlier groups included.
  Actions OnSequenceEnded(SequenceId sequence, uint32_t output_tokens, absl::Duration now);
  /// A stop string ends it: the worker is told.
  Actions EndSequence(SequenceId sequence, uint32_t output_tokens, absl::Duration now);
  /// The group gave it back unfinished and healthy (it drains, its queue is full): it goes on elsewhere.
  Actions OnSequenceReturned(SequenceId sequence, absl::Duration now);

  /// Leases and deadlines. To be called at NextTick() at the latest.
  Actions Tick(absl::Duration now);
  absl::Duration NextTick() const;

  /// From now on every Submit() fails with ShuttingDown().
  void StopAdmission() { stopped_ = true; }

  bool HasReadyGroup(const std::string& model) const;
  /// For the rate headers.
  TenantRates Rates(const std::string& tenant, absl::Duration now) const;
  const std::map<GroupId, GroupState>& groups() const { return groups_; }
  size_t requests() const { return requests_.size(); }
  size_t waiting() const { return requests_.size() - running_; }  ///< Requests without a placed sequence.
  size_t running() const { return running_; }
  size_t sequences() const { return sequences_.size(); }
  uint64_t queue_tokens() const { return queue_tokens_; }

 private:
  struct Request {
    Admission admission;
    uint32_t placed = 0;  // Choices below this are or were on a group.
    uint32_t ended = 0;
    std::string fingerprint;  // Of the group of its first sequence: one request is never split over two.
    std::vector<SequenceId> live;
    absl::Duration deadline;
    absl::Duration queue_deadline;
    absl::Duration timer;  // Its entry in timers_.
  };
  struct Sequence {
    SequenceOwner owner;
    Connection on;
    uint64_t positions = 0;
    absl::Duration placed_at;
  };

  struct Queue {
    std::deque<RequestId> requests;  // Oldest first; each has a choice left to place.
    uint64_t sequences = 0;          // Those choices.
  };

  std::optional<FailRequest> Refusal(const Admission& admission, absl::Duration now) const;
  uint64_t ReadySlots(const std::string& model) const;
  bool FitsNow(const Admission& admission) const;
  absl::Duration EstimatedWait(const std::string& model, uint32_t choices) const;
  void Place(const std::string& model, absl::Duration now, Actions& actions);
  const GroupState* BestGroup(const std::string& model, const std::string* fingerprint) const;
  void StartSequence(RequestId id, Request& request, GroupState& group, absl::Duration now, Actions& actions);
  void ReleaseSequence(SequenceId id);
  void Forget(RequestId id, absl::Duration now, Actions& actions);
  void LeaveQueue(Request& request);
  Actions SequenceIsOver(SequenceId id, bool tell_worker, absl::Duration now);
  void FailNow(RequestId id, ApiError error, Rejection rejection, absl::Duration now, Actions& actions);
  void FailWaitingWithoutGroup(const std::string& model, absl::Duration now, Actions& actions);
  void LoseGroup(GroupId id, absl::Duration now, Actions& actions);
  void SetTimer(RequestId id, Request& request);
  GroupState* Find(Connection connection);

  const DispatcherOptions options_;
  bool stopped_ = false;
  uint64_t next_sequence_ = 1;
  uint64_t queue_tokens_ = 0;
  size_t running_ = 0;
  size_t queued_ = 0;            // In all queues.
  double sequence_seconds_ = 0;  // How long a sequence holds its place, moving average.
  std::map<GroupId, GroupState> groups_;
  absl::flat_hash_map<RequestId, Request> requests_;
  absl::flat_hash_map<SequenceId, Sequence> sequences_;
  std::map<std::string, Queue> queues_;  // By model.
  std::set<std::pair<absl::Duration, RequestId>> timers_;
};

}  // namespace quicksilver
