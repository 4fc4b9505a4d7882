#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/ops.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/collectives/communicator.h"
#include "worker/engine/step_clock.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// Bounds of one engine. Equal on all ranks of a group (part of what ranks agree on when they join).
struct EngineOptions {
  int32_t sequences_max = 64;   ///< Running at once; more wait inside the engine.
  int32_t waiting_max = 256;    ///< Admitted and not started yet; more are refused. Streams have equal shares of it.
  int32_t step_rows_max = 512;  ///< Token budget of a step (N).
  /// Steps that may run before the host looks at the group again: hides the host's time where launches are dear, and
  /// delays what arrives meanwhile. Changes no answer.
  int32_t steps_per_launch_max = 1;
  absl::Duration idle_beat = absl::Seconds(1);     ///< The leader's log entry when there is nothing to do.
  absl::Duration peer_timeout = absl::Seconds(5);  ///< Silence after which a peer counts as lost.
  /// Block-causal families: pages of equal prefixes are computed once for all sequences of equal Submit.cache_salt.
  bool share_prefixes = true;
  /// Prefill beside denoising is cut so that a step takes about this long; at least a block goes in each. Zero: about
  /// twice what denoising alone takes, or 50 ms where that is more. The leader's alone. Changes no answer.
  absl::Duration step_time_target = absl::ZeroDuration();
};

/// What the leader tells about its load. A snapshot.
struct EngineLoad {
  uint32_t running = 0;
  uint32_t waiting = 0;    ///< Preempted ones included.
  uint32_t preempted = 0;  ///< Of the waiting ones, those that ran before.
  uint64_t pages_free = 0;
  uint64_t pages_cached = 0;  ///< Of the free ones, those that hold prefixes for reuse.
  uint64_t pages_total = 0;
  uint64_t steps = 0;
  absl::Time last_step;  ///< Of the wall clock, for the heartbeat metric.
  StepClock::Reading step_clock;
  // Since the start.
  uint64_t preemptions = 0;
  uint64_t prefix_query_tokens = 0;  ///< Tokens that were looked for in the prefix cache, …
  uint64_t prefix_hit_tokens = 0;    ///< … and found.
  uint64_t evictions = 0;            ///< Cached pages given up for others.
  uint64_t numerical_errors = 0;     ///< Sequences that ended because a logit was not finite.
};

/// One rank's engine: the replicated state machine of a group (architecture.md §3). The leader turns submissions and
/// cancels into log entries; every rank applies the same entries to the same pure scheduler and sequences, runs the
/// same steps, and after gathering a few numbers a row takes the same decisions.
///
/// What it reports as `step` and `forwards` counts the forwards that denoised the sequence. Prefill is not counted; a
/// closed block's KV is written by the forward that first denoises the next block, so it costs none of its own and both
/// numbers depend neither on the batch nor on how a prompt was cut.
class Engine {
 public:
  /// Where the leader reports, on the engine's thread, after every step: the updates of one stream. Must not block.
  using Report = std::function<void(uint64_t stream, v1::StepResult result)>;

  /// All references outlive the engine. `epoch` stamps the results. `report` is used on the leader only.
  static std::unique_ptr<Engine> Create(Transformer& model, Ops& ops, Communicator& ranks, ControlChannel& control,
                                        const EngineOptions& options, uint64_t epoch, Report report);
  virtual ~Engine() = default;

  /// Makes the buffers of a step and, on a device, records the steps of common shapes, which takes seconds. To be
  /// called once, by every rank at about the same time, before Run(). ResourceExhausted: they do not fit.
  virtual absl::Status Prepare() = 0;

  /// The loop of this rank: returns OK after Shutdown() (on followers: the leader's), Unavailable when the group is
  /// lost, Internal on a bug or a sticky device error. Everything below may be called from other threads, on the leader
  /// only.
  virtual absl::Status Run() = 0;

  /// Hands a sequence of `stream` to the loop. `streams` are connected, `stream` included. InvalidArgument: it can
  /// never run here (names field, value and bound); ResourceExhausted: the stream's part of `waiting_max` is full.
  virtual absl::Status Submit(uint64_t stream, const v1::Submit& submit, int32_t streams) = 0;
  virtual void Cancel(uint64_t stream, uint64_t sequence_id) = 0;
  /// The stream broke: cancels all of its sequences and reports nothing more to it.
  virtual void CancelStream(uint64_t stream) = 0;
  /// Ends Run() at the next step on every rank.
  virtual void Shutdown() = 0;
  /// On any rank. Asks for no lock that the loop holds for long.
  virtual EngineLoad Load() const = 0;
  /// The same of Load().step_clock alone.
  virtual StepClock::Reading StepTimes() const = 0;
};

}  // namespace quicksilver
