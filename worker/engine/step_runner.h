#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/collectives/communicator.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_batch.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// Runs planned steps on one rank's device: one upload, then one or several times forward, candidates of the rows that
/// are wanted, one gather, and the decision about every open block, all without the host, which only reads what was
/// decided. Where launches are dear the work of a shape is recorded once and replayed. Buffers are made once. All ranks
/// run the same plans. Not thread-safe.
class StepRunner {
 public:
  struct Limits {
    int32_t rows_max = 0;       ///< Of a step.
    int32_t sequences_max = 0;  ///< Of a step.
    int32_t steps_per_launch_max = 1;
    bool record_common_shapes = true;  ///< In Allocate(), where programs are preferred. Else each with its first step.
  };
  /// All references outlive it.
  StepRunner(Transformer& model, Ops& ops, Communicator& ranks, const Limits& limits);
  ~StepRunner();

  /// Makes the device buffers and, where programs are preferred, records those of common shapes (see Limits).
  /// ResourceExhausted: they do not fit.
  absl::Status Allocate();

  /// Records what Launch(plan) runs where that is not done yet, which may take long: a device tries algorithms out for
  /// a shape that is new to it. Launch() would do it all the same.
  absl::Status Prepare(absl::Span<const PlannedSegment> plan);

  /// Starts `plan`, which is not empty: up to `steps_max` steps (at most Limits::steps_per_launch_max) that denoise the
  /// same open blocks, until a block needs the host (BlockStep). `seal` stands for every decision so far. The steps of
  /// an earlier Launch() are over. A plan that prefills takes steps_max = 1.
  absl::Status Launch(absl::Span<const PlannedSegment> plan, uint64_t seal, int32_t steps_max);

  /// Waits for the next step of the launch. False when there is none left. Internal: the ranks' seals differ, or the
  /// device failed; Unavailable: a rank is gone.
  absl::StatusOr<bool> Next();

  /// After Next(): what the rows of plan[index] chose, in the order of Sequence::asked(), which the caller has brought
  /// up to date with the steps before. Empty for prefill. Good until the next call.
  absl::Span<RowChoice> Choices(size_t index, const Sequence& sequence);
  /// The alternatives of the last Choices(), kTopReportedMax each, when Sequence::wants_tops().
  absl::Span<const TopLogit> tops() const { return tops_; }

  /// Where rows keep their logits between steps: a sequence that wants_history() is planned only while it holds some.
  HistorySlots& history_slots() { return history_slots_; }
  /// How many rows can keep theirs. Thread-safe.
  int32_t history_rows() const { return history_rows_; }

 private:
  struct Recorded {
    std::unique_ptr<Program> program;
    uint64_t last_use = 0;
  };

  StepShape ShapeMax() const;
  absl::Status AllocateArrays(const StepShape& shape);
  absl::Status MakeRoom(const StepShape& shape);
  size_t PageTableMax() const;
  StepShape DenoisingShape(int32_t sequences, int32_t rows, int32_t masked) const;
  absl::Status AgreeOnLoops();
  absl::Status RecordCommonShapes();
  absl::StatusOr<Program*> ProgramOf(const StepShape& shape);
  StepLayout LayoutOf(const StepShape& shape, int32_t rows_max, int32_t keys_max) const;
  void Enqueue(const StepShape& shape, const StepLayout& layout);
  void RunCandidates(const StepShape& shape, const StepArrays& arrays);
  void Gather(const StepShape& shape);
  void Condition(const StepShape& shape, const StepArrays& arrays);
  BlockStep BlockStepOf(const StepShape& shape, const StepArrays& arrays) const;
  absl::Status CheckSeals() const;
  absl::Status AwaitStep(uint32_t wanted);
  absl::Status Finish();

  Transformer& model_;
  Ops& ops_;
  Communicator& ranks_;
  const Limits limits_;
  bool loops_;  // Several steps can be recorded as a loop on the device.

  const int32_t history_rows_;
  HistorySlots history_slots_;
  StepBatch batch_;
  std::map<StepShape, Recorded> programs_;
  uint64_t uses_ = 0;
  std::unique_ptr<Program> unrecorded_;  // Where programs are not preferred: whatever shape_ and layout_ say.

  // The launch that runs.
  StepShape shape_;
  StepLayout layout_;  // Where programs are not preferred.
  uint64_t seal_ = 0;
  uint32_t steps_read_ = 0;
  bool running_ = false;
  std::vector<RowChoice> choices_;
  std::vector<TopLogit> tops_;
  size_t choices_max_ = 0;
  int32_t biases_max_ = 0;

  DeviceBuffer staging_;  // Shared: what the host lays out.
  DeviceBuffer arrays_;   // Its copy on the device, which a launch changes.
  DeviceBuffer scratch_;  // BlockStep's.
  DeviceBuffer candidates_;
  DeviceBuffer gathered_candidates_;
  DeviceBuffer top_;
  DeviceBuffer gathered_top_;
  DeviceBuffer history_;
  DeviceBuffer results_;  // Shared: what the host reads.
};

}  // namespace quicksilver
