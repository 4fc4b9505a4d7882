#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

// Merges what the pieces of the plan have left, in ascending order of chunks: a warp for each query, a lane for four
// columns. Reads what is mostly still in the L2 cache, and has nothing to do when no keys were split.
namespace quicksilver::attention {
namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = 32 * kWarps;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr int32_t kChunksAtOnce = 8;  // Of the first 1,024 keys all.

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

/// Lane l has columns 4 l to 4 l + 3, and of more than 128 columns those 128 further.
template <int32_t kSlices>
struct Softmax {
  float largest = MinusInfinity();
  float total = 0.0f;
  float sums[kSlices][4] = {};
};

/// Adds up the chunks of one query, whose first is in `row` of the partial results and the others `stride` rows apart.
/// `scratch`: of the warp, [kChunksAtOnce, kSlices, 32]. The sums pass through it because that keeps all loads under
/// way at once; a compiler likes to put each load where its result is used. A lane sees only what it has copied itself.
template <typename Scores, int32_t kSlices>
__device__ __forceinline__ Softmax<kSlices> MergeChunks(const Arguments& a, int64_t row, int64_t stride, int32_t chunks,
                                                        float4* scratch) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, columns = PartialStride(a.head_size);
  Softmax<kSlices> all;
  for (int32_t first = 0; first < chunks; first += kChunksAtOnce) {
    float2 weights = {0.0f, 0.0f};  // The largest score and the total of chunk first + lane.
    if (lane < kChunksAtOnce && first + lane < chunks) {
      weights = reinterpret_cast<const float2*>(a.plan.partial_weights)[row + (first + lane) * stride];
    }
#pragma unroll
    for (int32_t i = 0; i < kChunksAtOnce; ++i) {
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) {
        const int32_t column = 4 * lane + 128 * c;
        const bool valid = first + i < chunks && column < columns;
        const float* const from = a.plan.partial_sums + (row + (first + i) * stride) * columns + column;
        CopyAsync16(scratch + (i * kSlices + c) * 32 + lane, valid ? from : a.plan.partial_sums, valid);
      }
    }
    CopyAsyncCommit();
    CopyAsyncWait<0>();
#pragma unroll
    for (int32_t i = 0; i < kChunksAtOnce; ++i) {
      const float largest = __shfl_sync(kAllLanes, weights.x, i), total = __shfl_sync(kAllLanes, weights.y, i);
      const MergeFactors factors = MergeChunk<Scores>(largest, total, all.largest, all.total);
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) {
        const float4 sums = scratch[(i * kSlices + c) * 32 + lane];
        all.sums[c][0] = MergeSum(factors, all.sums[c][0], sums.x);
        all.sums[c][1] = MergeSum(factors, all.sums[c][1], sums.y);
        all.sums[c][2] = MergeSum(factors, all.sums[c][2], sums.z);
        all.sums[c][3] = MergeSum(factors, all.sums[c][3], sums.w);
      }
    }
  }
  return all;
}

/// The last step of the kernels that do whole jobs: the same operations, for the same bits.
__device__ __forceinline__ void Finish(BinaryScores, float total, float (&sums)[4]) {
  const float reciprocal = __frcp_rn(total);
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) sums[i] = __fmul_rn(sums[i], reciprocal);
}
__device__ __forceinline__ void Finish(NaturalScores, float total, float (&sums)[4]) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) sums[i] = __fdiv_rn(sums[i], total);
}

__device__ __forceinline__ void Store(float value, float* to) { *to = value; }
__device__ __forceinline__ void Store(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

/// Stores the first `count` of four columns. `aligned`: rows begin at multiples of 4 bytes.
template <typename T>
__device__ __forceinline__ void StoreColumns(const float (&values)[4], int32_t count, bool aligned, T* to) {
  if constexpr (sizeof(T) == 2) {
    if (aligned && count >= 4) {
      reinterpret_cast<__nv_bfloat162*>(to)[0] = __floats2bfloat162_rn(values[0], values[1]);
      reinterpret_cast<__nv_bfloat162*>(to)[1] = __floats2bfloat162_rn(values[2], values[3]);
      return;
    }
  }
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if (i < count) Store(values[i], to + i);
  }
}

template <typename T, typename Scores, int32_t kSlices>
__global__ void __launch_bounds__(kThreads) MergeKernel(const __grid_constant__ Arguments a) {
  DependencyWait();
  DependencyLaunch();
  const Counts counts = *a.plan.counts;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  float4* const scratch = reinterpret_cast<float4*>(SharedMemory()) + warp * kChunksAtOnce * kSlices * 32;
  for (int32_t unit = static_cast<int32_t>(blockIdx.x) * kWarps + warp; unit < counts.merge_units;
       unit += static_cast<int32_t>(gridDim.x) * kWarps) {
    const Merge merge = MergeOf(a.plan, counts.merges, unit);
    const int32_t kv_head = (unit - merge.first_unit) / merge.queries;
    const int32_t query = unit - merge.first_unit - kv_head * merge.queries;
    Softmax<kSlices> softmax = MergeChunks<Scores, kSlices>(
        a, merge.partial + unit - merge.first_unit, int64_t{merge.queries} * a.kv_heads.divisor, merge.chunks, scratch);
    const uint64_t byte = ElementByte(a, merge.first_row, merge.first_query + query, kv_head, 4 * lane,
                                      static_cast<int32_t>(sizeof(T)), a.out_stride_bytes);
    T* const to = reinterpret_cast<T*>(static_cast<unsigned char*>(a.out) + byte);
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) {
      Finish(Scores(), softmax.total, softmax.sums[c]);
      StoreColumns(softmax.sums[c], a.head_size - (4 * lane + 128 * c), a.aligned_rows, to + 128 * c);
    }
  }
}

template <typename T, typename Scores, int32_t kSlices>
cudaError_t LaunchSlices(LaunchShape shape, const Arguments& arguments) {
  shape.shared_bytes = kWarps * kChunksAtOnce * kSlices * 32 * sizeof(float4);
  return Launch(MergeKernel<T, Scores, kSlices>, shape, arguments);
}

template <typename T, typename Scores>
cudaError_t LaunchFor(const LaunchShape& shape, const Arguments& arguments) {
  if (arguments.head_size <= 128) return LaunchSlices<T, Scores, 1>(shape, arguments);
  return arguments.head_size <= 256 ? LaunchSlices<T, Scores, 2>(shape, arguments)
                                    : LaunchSlices<T, Scores, 4>(shape, arguments);
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
