#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "worker/decoding/sequence.h"
#include "worker/engine/page_pool.h"

namespace quicksilver {

/// The budgets of a group. Equal on all ranks.
struct SchedulerLimits {
  int32_t sequences_max = 0;  ///< Running at once.
  int32_t step_rows_max = 0;  ///< Rows of a step (N).
  int32_t pages = 0;
  int32_t page_size = 0;  ///< Positions a page.
};

/// InvalidArgument, naming both values, when no step or no pool of `limits` could ever run `sequence`.
absl::Status CheckFits(const SchedulerLimits& limits, const Sequence& sequence);

/// A sequence that holds its pages.
struct RunningSequence {
  uint64_t id = 0;
  Sequence sequence;
  std::vector<int32_t> pages;        ///< For its whole canvas, by position.
  std::vector<int32_t> guide_pages;  ///< The same for its guide rows; empty without guidance.
  uint64_t last_step = 0;            ///< Step that last ran rows of it; 0: none yet.
};

/// What one sequence does in the step that was planned.
struct PlannedSegment {
  RunningSequence* running = nullptr;
  Segment segment;
};

/// Decides which sequences run in a step, and with how many rows. Pure: `Plan` depends on earlier calls alone.
///
/// Sequences start in the order of their ids, as long as there is a place and pages for the whole of the next one (so
/// none is ever preempted). In a step those that waited longest come first; each gets one denoising segment or, while
/// its prompt is prefilled, a chunk of about an eighth of the row budget, so neither a long prompt nor many open blocks
/// hold up the others; rows that are left over lengthen the chunks, oldest sequence first.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Queues a sequence. `id` ascends from call to call. Requires: CheckFits() is OK.
  void Add(uint64_t id, Sequence sequence);
  /// Forgets a waiting or running sequence and frees its pages. False when there is none of this id.
  bool Remove(uint64_t id);
  /// Starts what can start and returns the segments of the next step; empty when nothing runs. Pointers live until the
  /// next Remove() of that sequence.
  std::vector<PlannedSegment> Plan();

  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t pages_free() const { return pool_.free(); }

 private:
  struct Waiting {
    uint64_t id;
    Sequence sequence;
  };

  void StartWaiting();
  int32_t FirstGrant(const Sequence& sequence, int32_t rows_left) const;
  void CheckPages() const;

  SchedulerLimits limits_;
  PagePool pool_;
  std::deque<Waiting> waiting_;
  std::vector<std::unique_ptr<RunningSequence>> running_;  // Ascending ids.
  uint64_t step_ = 0;
};

}  // namespace quicksilver
