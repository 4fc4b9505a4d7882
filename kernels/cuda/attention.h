#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_plan.h"
#include "kernels/ops.h"

namespace quicksilver {

struct CudaAttentionOptions {
  int32_t multiprocessors = 1;                       ///< Of the device.
  size_t partial_bytes = size_t{64} << 20;           ///< Memory for partial results.
  attention::Split split = attention::Split::kAuto;  ///< Changes the speed, never a bit.
};

/// Ops::Attention on a device: two kernels a call, and a small one before them in the first call of a step and kind of
/// layer (heads and window; of more than two kinds in turns, in every call). Head sizes 64, 128 and 256 of bf16 run on
/// tensor cores, any other up to 512, and f32, in plain floats. What is launched depends
/// on the host's numbers of the layout alone, so that calls can be captured in a graph, and replayed with other device
/// contents. Not thread-safe.
class CudaAttention {
 public:
  static size_t WorkspaceBytes(const CudaAttentionOptions& options);

  /// `workspace`: device memory of WorkspaceBytes(), aligned to 256, for this object alone; its content does not
  /// matter.
  CudaAttention(const CudaAttentionOptions& options, void* workspace);

  /// The layout has changed: the next Run() derives its work list anew.
  void BeginStep() {
    for (Planned& planned : planned_) planned = {};
    next_place_ = 0;
  }

  /// Ops::Attention. Enqueues only. How many queries share a tile follows from layout.rows_max, so a tight bound is
  /// fast.
  ///
  /// Keys of rows that a segment does not write in this step are loaded while the kernel enqueued before still runs. So
  /// that kernel may write no others, no segment without an unseen_key may see a key that another one writes in the
  /// same step, and that kernel may let the next start (DependencyLaunch) only after its own DependencyWait(). All
  /// three hold for the kernel of Ops::RotateAndCache and one segment a sequence, besides shadow rows.
  cudaError_t Run(cudaStream_t stream, const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads,
                  const AttentionRule& rule, const KvLayer& cache, Matrix out);

 private:
  /// What a work list is made for, besides the layout.
  struct Planned {
    int32_t heads = 0;
    int32_t kv_heads = 0;
    int32_t head_size = 0;
    int32_t tile_queries = 0;
    int32_t blocks = 0;
    int32_t window = 0;
    bool operator==(const Planned&) const = default;
  };

  static constexpr int32_t kPlans = 2;

  /// The work list at `place`, and the workspace for rows of partial results of `head_size` floats.
  attention::Plan PlanFor(int32_t place, int32_t head_size) const;
  /// Where the work list is, or -1.
  int32_t PlaceOf(const Planned& wanted) const;
  int32_t PartialRows(int32_t head_size) const;
  cudaError_t MakePlan(cudaStream_t stream, const StepLayout& layout, const Planned& wanted);

  CudaAttentionOptions options_;
  unsigned char* workspace_;
  Planned planned_[kPlans];
  int32_t next_place_ = 0;  ///< Of the next work list.
};

}  // namespace quicksilver
