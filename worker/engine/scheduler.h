#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/decoding/sequence.h"
#include "worker/engine/page_pool.h"

namespace quicksilver {

/// The budgets of a group. Equal on all ranks.
struct SchedulerLimits {
  int32_t sequences_max = 0;  ///< Running at once.
  int32_t step_rows_max = 0;  ///< Rows of a step (N).
  int32_t pages = 0;
  int32_t page_size = 0;  ///< Positions a page; a multiple of the block length of every sequence that shares.
  bool share_prefixes = false;
};

/// What a sequence may ask for besides its answer.
struct SchedulingTerms {
  int32_t priority = 1;  ///< Its class: 0 goes first, then 1, then 2.
  std::string tenant;    ///< Whose fair share it uses.
  /// By the clock of Plan(). Earlier ones go first; nothing else happens, see Expired().
  absl::Duration deadline = absl::InfiniteDuration();
  std::string cache_salt;  ///< Pages of equal prefixes are shared between equal salts. Empty: with nobody.
};

/// InvalidArgument, naming both values, when no step or no pool of `limits` could ever run `sequence`.
absl::Status CheckFits(const SchedulerLimits& limits, const Sequence& sequence);

/// A sequence and the pages that it holds.
struct RunningSequence {
  uint64_t id = 0;
  Sequence sequence;
  std::vector<int32_t> pages;        ///< By position; they cover the keys of its next segment once that is planned.
  std::vector<int32_t> guide_pages;  ///< The same for its guide rows; empty without guidance.
  uint64_t last_step = 0;            ///< Step that last ran rows of it; 0: none yet.
  int32_t cached_tokens = 0;         ///< Prompt tokens that its first start found in the prefix cache.
  int32_t preemptions = 0;           ///< How often it lost its pages.
};

/// What one sequence does in the step that was planned.
struct PlannedSegment {
  RunningSequence* running = nullptr;
  Segment segment;
};

/// A snapshot and counts since construction.
struct SchedulerStatistics {
  int32_t running = 0;    ///< Hold a place and pages.
  int32_t waiting = 0;    ///< All others, preempted ones included.
  int32_t preempted = 0;  ///< Waiting ones that ran before.
  int32_t pages_free = 0;
  int32_t pages_cached = 0;  ///< Held by no sequence; kept for those to come, taken when pages run out.
  int32_t pages_used = 0;    ///< Held by sequences. free + cached + used = all.
  uint64_t preemptions = 0;
  uint64_t prefix_query_tokens = 0;  ///< Tokens that starting sequences looked for in the prefix cache, …
  uint64_t prefix_hit_tokens = 0;    ///< … and found.
  uint64_t evictions = 0;            ///< Cached pages that were given up for others.
};

/// Decides which sequences run in a step, and with how many rows. Pure: depends on the calls alone.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Queues a sequence. `id` ascends from call to call. Requires: CheckFits() is OK, priority in [0, 2].
  void Add(uint64_t id, Sequence sequence, SchedulingTerms terms, absl::Duration now);
  /// Forgets a waiting or running sequence and lets go of its pages, after its results of the last step were applied.
  /// False when there is none of this id. `sound` is false when its KV is not to be trusted (its logits were not
  /// finite): then no page of it is shared any more.
  bool Remove(uint64_t id, bool sound = true);
  /// The live sequence of this id, or null. Lives until its Remove().
  const RunningSequence* Find(uint64_t id) const;
  /// Live sequences whose deadline is at or before `now`, by ascending id. The caller ends them.
  std::vector<uint64_t> Expired(absl::Duration now) const;

  /// Starts what can start and returns the segments of the next step by ascending id; empty only when there is no live
  /// sequence. `now` is the group's clock. At most `prefill_rows_max` rows prefill beside denoising ones, but at least
  /// a block. To be called when the results of the step before are applied: pages that became final are shared from
  /// then on. Pointers live until the Remove() of that sequence.
  std::vector<PlannedSegment> Plan(absl::Duration now, int32_t prefill_rows_max);

  SchedulerStatistics statistics() const;
  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t pages_free() const { return pool_.free(); }

 private:
  struct Waiting {
    std::unique_ptr<RunningSequence> sequence;
    SchedulingTerms terms;
  };

  void StartWaiting();
  int32_t FirstGrant(const Sequence& sequence, int32_t rows_left) const;
  void CheckPages() const;

  SchedulerLimits limits_;
  PagePool pool_;
  std::deque<Waiting> waiting_;
  std::vector<Waiting> running_;  // Ascending ids.
  uint64_t step_ = 0;
};

}  // namespace quicksilver
