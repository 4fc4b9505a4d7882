#pragma once

#include <array>
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

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "coordinator/core/api_error.h"
#include "coordinator/core/circuit_breaker.h"
#include "coordinator/core/fair_queue.h"
#include "coordinator/core/generate.h"
#include "coordinator/core/group_state.h"
#include "coordinator/core/ids.h"
#include "coordinator/core/placement.h"
#include "coordinator/core/service_times.h"
#include "coordinator/core/tenants.h"

namespace quicksilver {

struct DispatcherOptions {
  uint32_t queue_requests_max = 1024;                    ///< Of one model, of which no choice has been on a group.
  uint64_t queue_tokens_max = 4 << 20;                   ///< Prompt and answer tokens of those.
  absl::Duration queue_time_max = absl::Seconds(60);     ///< Until the first sequence is placed.
  absl::Duration request_time_max = absl::Seconds(600);  ///< From acceptance to the end.
  absl::Duration lease = absl::Seconds(5);               ///< A group that is silent for longer is lost.
  absl::Duration resume_wait = absl::Seconds(30);        ///< For a group, while none that fits is ready.
  absl::Duration target_grace = absl::Seconds(2);        ///< Behind a latency target, for the worker's best answer.
  absl::Duration ageing = absl::Seconds(10);             ///< See FairQueue.
  double moves_per_second_max = 4;                       ///< To even out the load. Groups that drain move at once.
  TenantsOptions tenants;
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

enum class SubmitCause { kNew, kLost, kMoved, kReturned };

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

/// Admission, placement and the life of requests, as a state machine without threads, time or wires: each call says
/// what happened, and answers what is to be done. Every submitted request ends with exactly one FailRequest or
/// CompleteRequest, or by Cancel(). `now` counts from any start and never goes back.
///
/// Admission checks, in this order: draining (503), deadline (504), the tenant's limits (429), a ready group (503), the
/// bounds of the model's queue and the estimated wait (503). Each model has a queue of its own, so that none can close
/// another's. A full queue sheds the youngest request of the lowest class below
/// the new one's to make room, or else one of its own class, of a tenant with far more waiting for its weight. What has
/// been on a group is never shed.
///
/// Failover: what runs on a group that is lost waits at the head of the queue and goes on elsewhere under a new
/// sequence id: on any group of the model before its first progress, afterwards only on equal fingerprints. While no
/// such group is ready it waits for resume_wait, then it fails with WorkerLost(); so do requests that wait for their
/// first group, with NoReadyWorker().
///
/// Poison: a choice counts the groups that were lost under it; progress clears the count. After two it is a suspect and
/// runs only where no other suspect does; the third loss ends its request with WorkerLost(), as does the ninth resume.
///
/// Moves: a choice is submitted to another group of equal fingerprint, and cancelled where it was. A group that drains
/// gives away all that fits elsewhere; one that has work waiting or is far more loaded than another gives away its
/// youngest, each of them at most twice.
class Dispatcher {
 public:
  explicit Dispatcher(const DispatcherOptions& options)
      : options_(options), tenants_(options.tenants, options.queue_requests_max) {}

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

  bool IsAlive(SequenceId sequence) const { return sequences_.contains(sequence); }
  /// OnProgress(), or with `ended` OnSequenceEnded(), of a sequence that was given up while the update was being taken
  /// in: its client has seen it, so that it counts for the choice wherever that is now.
  Actions OnLateUpdate(SequenceOwner owner, bool ended, uint32_t output_tokens, absl::Duration now);

  /// The caller itself was stopped for a while: no group is blamed for what was not heard then. To be called before the
  /// Tick() that is late.
  void ForgiveSilence(absl::Duration now);
  /// Leases and deadlines. To be called at NextTick() at the latest.
  Actions Tick(absl::Duration now);
  absl::Duration NextTick() const;

  /// From now on every Submit() fails with ShuttingDown().
  void StopAdmission() { stopped_ = true; }

  bool HasReadyGroup(const std::string& model) const;
  /// For the rate headers.
  TenantRates Rates(const std::string& tenant, absl::Duration now) const { return tenants_.Rates(tenant, now); }
  const Tenants& tenants() const { return tenants_; }
  const std::map<GroupId, GroupState>& groups() const { return placement_.groups(); }
  size_t requests() const { return requests_.size(); }
  size_t waiting() const { return queued_.requests; }  ///< Requests of which no choice has been on a group.
  size_t running() const { return requests_.size() - queued_.requests; }
  size_t sequences() const { return sequences_.size(); }
  uint64_t queue_tokens() const { return queued_.tokens; }  ///< Of the waiting ones.
  /// Recounts everything, for tests.
  void CheckInvariants() const;

 private:
  struct Choice {
    enum class State { kQueued, kWaiting, kRunning, kEnded };
    State state = State::kQueued;
    SequenceId sequence{};  // While it runs.
    SubmitCause cause = SubmitCause::kNew;
    uint32_t output_tokens = 0;
    bool progressed = false;
    uint32_t losses = 0;  // Since its last progress.
    uint32_t resumes = 0;
    uint32_t moves = 0;  // For balance.
    absl::Duration waiting_since;
  };
  struct Request {
    Admission admission;
    TenantId tenant{};
    TokenCounts reserved;
    uint64_t order = 0;  // Of admission.
    GroupModel* model = nullptr;
    GroupPool* pool = nullptr;  // Whose fingerprint it is bound to: one request is never split over two.
    GroupPool* left = nullptr;  // The last one it was freed from.
    std::vector<Choice> choices;
    uint32_t ended = 0;
    bool started = false;  // A choice has been on a group.
    absl::Duration deadline;
    absl::Duration queue_deadline;
    absl::Duration timer = absl::InfiniteDuration();
  };
  struct Sequence {
    SequenceOwner owner;
    Connection on;
    uint64_t positions = 0;
    uint32_t prompt = 0;
    absl::Duration placed_at;
    uint64_t beat = 0;  // Of the group, when it was placed.
    SubmitCause cause = SubmitCause::kNew;
    bool progressed = false;
    bool suspect = false;
  };
  struct Queued {
    size_t requests = 0;
    uint64_t tokens = 0;
  };
  // What waits for a model, besides the choices in its pools.
  struct ModelQueue {
    explicit ModelQueue(absl::Duration ageing) : fresh(ageing) {}
    FairQueue fresh;
    ServiceTimes times;
    bool dirty = false;
    Queued queued;  // In `fresh`: requests that have not started.
    std::array<Queued, kPriorities> by_class = {};
    std::array<std::set<std::pair<uint64_t, RequestId>>, kPriorities> by_age;  // By order.
  };
  struct Breaker {
    CircuitBreaker breaker;
    absl::Duration timer = absl::InfiniteDuration();
  };
  enum class TimerKind { kLease, kBreaker, kPool, kRequest };
  using TimerKey = std::pair<TimerKind, uint64_t>;

  // dispatcher_admission.cc
  std::optional<FailRequest> Refusal(const Admission& admission, TenantId tenant, absl::Duration now);
  std::optional<FailRequest> QueueRefusal(const Admission& admission, TenantId tenant, absl::Duration now) const;
  bool FitsNow(const Admission& admission) const;
  bool FitsIntoQueue(const ModelQueue& queue, Queued without, const Admission& admission) const;
  void MakeRoom(const Admission& admission, TenantId tenant, absl::Duration now, Actions& actions);
  absl::Duration TimeMax(const Admission& admission) const;
  absl::Duration EstimatedWait(const Admission& admission, TenantId tenant) const;
  QueuedRequest QueuedOf(const Admission& admission, TenantId tenant, absl::Duration now) const;
  bool TooLate(const Admission& admission, absl::Duration now) const;
  void Enqueue(const Admission& admission, TenantId tenant, absl::Duration now);
  void LeaveQueue(Request& request, bool served);

  // dispatcher_queue.cc
  void Settle(absl::Duration now, Actions& actions);
  void Place(GroupModel& model, absl::Duration now, Actions& actions);
  void PlaceWaiting(GroupPool& pool, absl::Duration now, Actions& actions);
  void PlaceFresh(RequestId id, GroupModel& model, absl::Duration now, Actions& actions);
  void StartSequence(Request& request, uint32_t choice, GroupState& group, absl::Duration now, Actions& actions);
  void ReleaseSequence(SequenceId id, absl::Duration now);
  void Wait(Request& request, uint32_t choice, absl::Duration now);
  void StopWaiting(Request& request, uint32_t choice);
  void Bind(Request& request, GroupPool* pool);
  void UnbindIfFree(Request& request);
  static GroupPool& PoolOf(const Request& request) {
    return request.pool != nullptr ? *request.pool : request.model->all;
  }
  std::set<WaitingChoice>& LaneOf(const Request& request, uint32_t choice) const;
  void ArmPatience(GroupPool& pool, absl::Duration now);
  void OnPatienceEnd(GroupPool& pool, absl::Duration now, Actions& actions);
  static Placing PlacingOf(const Request& request, uint32_t choice);

  // dispatcher_groups.cc
  void LoseGroup(GroupId id, bool blame, absl::Duration now, Actions& actions);
  bool GoesOn(const Choice& choice) const;
  void ArmBreaker(GroupId id, absl::Duration now);
  void RefreshBreaker(GroupState& group, absl::Duration now);
  void Drain(GroupState& group, absl::Duration now, Actions& actions);
  void Rebalance(GroupState& group, absl::Duration now, Actions& actions);
  bool MoveYoungest(GroupState& group, GroupState& target, absl::Duration now, Actions& actions);
  void Move(SequenceId id, GroupState& target, absl::Duration now, Actions& actions);
  bool MayMove(absl::Duration now);

  // dispatcher.cc
  void SequenceIsOver(SequenceId id, uint32_t output_tokens, bool tell_worker, absl::Duration now, Actions& actions);
  void EndChoice(SequenceOwner owner, uint32_t output_tokens, absl::Duration now, Actions& actions);
  void Forget(RequestId id, bool turned_away, absl::Duration now, Actions& actions);
  void FailNow(RequestId id, ApiError error, Rejection rejection, absl::Duration now, Actions& actions);
  void OnRequestTimer(RequestId id, absl::Duration now, Actions& actions);
  void OnLeaseTimer(GroupId id, absl::Duration now, Actions& actions);
  void SetTimer(TimerKey key, absl::Duration& timer, absl::Duration next);
  ModelQueue& QueueOf(const GroupModel& model);
  const ModelQueue& QueueOf(const GroupModel& model) const { return queues_[model.number]; }
  void MarkDirty(const GroupModel& model);

  const DispatcherOptions options_;
  bool stopped_ = false;
  uint64_t last_sequence_ = 0;
  uint64_t last_order_ = 0;
  Tenants tenants_;
  Placement placement_;
  absl::flat_hash_map<RequestId, Request> requests_;
  absl::flat_hash_map<SequenceId, Sequence> sequences_;
  std::deque<ModelQueue> queues_;  // By GroupModel::number.
  std::vector<size_t> dirty_;      // Queues in which something may be placed now.
  std::map<GroupId, Breaker> breakers_;
  Queued queued_;  // In all queues.
  double moves_left_ = 1;
  absl::Duration moves_at_;
  absl::btree_set<std::pair<absl::Duration, TimerKey>> timers_;
};

}  // namespace quicksilver
