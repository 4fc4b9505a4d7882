#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

// Merges what the pieces of the plan have left, in ascending order of chunks: a warp for each query, whose lanes are
// columns. Reads what fits the L2 cache, and has nothing to do when no keys were split.
namespace quicksilver::attention {
namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = 32 * kWarps;
constexpr int32_t kChunksAtOnce = 4;  // Loads under way.

/// The last merge that begins at or before `unit`.
__device__ __forceinline__ const Merge& MergeOf(const Plan& plan, int32_t merges, int32_t unit) {
  int32_t low = 0, high = merges - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (plan.merges[middle].first_unit <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return plan.merges[low];
}

template <int32_t kSlices>
struct Softmax {
  float largest = MinusInfinity();
  float total = 0.0f;
  float sums[kSlices] = {};
};

/// Adds up the chunks of one query, whose first is in `row` of the partial results and the others `stride` rows apart.
template <typename Scores, int32_t kSlices>
__device__ __forceinline__ Softmax<kSlices> MergeChunks(const Arguments& a, int64_t row, int64_t stride,
                                                        int32_t chunks) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  Softmax<kSlices> all;
  for (int32_t first = 0; first < chunks; first += kChunksAtOnce) {
    float largest[kChunksAtOnce], total[kChunksAtOnce], sums[kChunksAtOnce][kSlices];
#pragma unroll
    for (int32_t i = 0; i < kChunksAtOnce; ++i) {
      const int64_t from = row + min(first + i, chunks - 1) * stride;
      largest[i] = a.plan.partial_weights[2 * from];
      total[i] = first + i < chunks ? a.plan.partial_weights[2 * from + 1] : 0.0f;
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) {
        const int32_t column = min(lane + 32 * c, a.head_size - 1);
        sums[i][c] = a.plan.partial_sums[from * a.head_size + column];
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kChunksAtOnce; ++i) {
      const MergeFactors factors = MergeChunk<Scores>(largest[i], total[i], all.largest, all.total);
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) all.sums[c] = MergeSum(factors, all.sums[c], sums[i][c]);
    }
  }
  return all;
}

/// The last step of the kernel that does whole jobs: the same operation, for the same bits.
__device__ __forceinline__ float Finished(BinaryScores, float sum, float total) {
  return __fmul_rn(sum, __frcp_rn(total));
}
__device__ __forceinline__ float Finished(NaturalScores, float sum, float total) { return __fdiv_rn(sum, total); }

__device__ __forceinline__ void Store(float value, float* to) { *to = value; }
__device__ __forceinline__ void Store(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

template <typename T, typename Scores, int32_t kSlices>
__global__ void __launch_bounds__(kThreads) MergeKernel(const __grid_constant__ Arguments a) {
  DependencyWait();
  DependencyLaunch();
  const Counts counts = *a.plan.counts;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / 32;
  for (int32_t unit = warp; unit < counts.merge_units; unit += static_cast<int32_t>(gridDim.x) * kWarps) {
    const Merge merge = MergeOf(a.plan, counts.merges, unit);
    const int32_t kv_head = (unit - merge.first_unit) / merge.queries;
    const int32_t query = unit - merge.first_unit - kv_head * merge.queries;
    const Softmax<kSlices> softmax = MergeChunks<Scores, kSlices>(
        a, merge.partial + unit - merge.first_unit, int64_t{merge.queries} * a.kv_heads.divisor, merge.chunks);
    const uint64_t byte = ElementByte(a, merge.first_row, merge.first_query + query, kv_head, lane,
                                      static_cast<int32_t>(sizeof(T)), a.out_stride_bytes);
    T* const to = reinterpret_cast<T*>(static_cast<unsigned char*>(a.out) + byte);
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) {
      if (lane + 32 * c < a.head_size) Store(Finished(Scores(), softmax.sums[c], softmax.total), to + 32 * c);
    }
  }
}

template <typename T, typename Scores>
cudaError_t LaunchFor(const LaunchShape& shape, const Arguments& arguments) {
  if (arguments.head_size <= 64) return Launch(MergeKernel<T, Scores, 2>, shape, arguments);
  if (arguments.head_size <= 128) return Launch(MergeKernel<T, Scores, 4>, shape, arguments);
  return Launch(MergeKernel<T, Scores, 8>, shape, arguments);
}

}  // namespace

cudaError_t LaunchMerge(cudaStream_t stream, DType dtype, bool tensor_core, int64_t queries, int32_t multiprocessors,
                        const Arguments& arguments) {
  constexpr int64_t kBlocksPerMultiprocessor = 16;  // All that can be there at once.
  const int64_t blocks = std::min((queries + kWarps - 1) / kWarps, multiprocessors * kBlocksPerMultiprocessor);
  const LaunchShape shape = {
      .grid = dim3(static_cast<uint32_t>(blocks)), .block = dim3(kThreads), .stream = stream, .overlap = true};
  if (dtype == DType::kF32) return LaunchFor<float, NaturalScores>(shape, arguments);
  return tensor_core ? LaunchFor<__nv_bfloat16, BinaryScores>(shape, arguments)
                     : LaunchFor<__nv_bfloat16, NaturalScores>(shape, arguments);
}

}  // namespace quicksilver::attention
