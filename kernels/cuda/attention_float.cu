#include <cuda_bf16.h>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

// Attention in plain floats: exact for float activations, and good for any head size. Keys and values are widened in
// shared memory, 32 at a time. A warp has four queries; its lanes are keys for the scores, and columns for the sums.
namespace quicksilver::attention {
namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = 32 * kWarps;
constexpr int32_t kWarpQueries = 4;
constexpr int32_t kQueries = kWarps * kWarpQueries;
constexpr int32_t kStepKeys = 32;
/// Blocks that a multiprocessor has room for.
constexpr int32_t BlocksOf(int32_t slices) { return slices > 8 ? 1 : 2; }
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void Store(float value, float* to) { *to = value; }
__device__ __forceinline__ void Store(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

template <typename T>
__device__ __forceinline__ const T* RowOf(const Rows& rows, uint64_t byte) {
  return reinterpret_cast<const T*>(static_cast<const unsigned char*>(rows.data) + byte);
}

/// A block's shared memory. `hd`: the head size.
struct Shared {
  float* queries;  // [kQueries, hd]
  float* keys;     // [kStepKeys, hd + 1]: lanes read a column, and the 1 spreads it over the banks.
  float* values;   // [kStepKeys, hd]
  float* weights;  // [kQueries, kStepKeys]
};

size_t SharedBytes(int32_t hd) {
  return static_cast<size_t>(kQueries * hd + kStepKeys * (2 * hd + 1) + kQueries * kStepKeys) * sizeof(float);
}

__device__ __forceinline__ Shared Carve(int32_t hd) {
  float* const memory = reinterpret_cast<float*>(SharedMemory());
  Shared shared = {memory, memory + kQueries * hd, nullptr, nullptr};
  shared.values = shared.keys + kStepKeys * (hd + 1);
  shared.weights = shared.values + kStepKeys * hd;
  return shared;
}

/// One warp's four queries. Lane l has columns l, l + 32, ...
template <int32_t kSlices>
struct WarpState {
  float sums[kWarpQueries][kSlices];
  float all_sums[kWarpQueries][kSlices];
  float largest[kWarpQueries], total[kWarpQueries];  // `total`: this lane's share until the chunk ends.
  float all_largest[kWarpQueries], all_total[kWarpQueries];
  // A query sees the keys in [first, visible) but `unseen`.
  int32_t first[kWarpQueries];
  int32_t visible[kWarpQueries];  // 0 for a query that the job does not have.
  int32_t unseen[kWarpQueries];   // -1: none.

  __device__ __forceinline__ bool Sees(int32_t i, int32_t key) const {
    return key >= first[i] && key < visible[i] && key != unseen[i];
  }
};

template <typename T>
__device__ __forceinline__ void LoadQueries(const Arguments& a, const Job& job, int32_t kv_head, const Shared& shared) {
  const int32_t hd = a.head_size;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kQueries * hd; i += kThreads) {
    const int32_t query = i / hd;
    float value = 0.0f;
    if (query < job.queries) {
      const uint64_t byte = ElementByte(a, job.first_row, job.first_query + query, kv_head, i - query * hd,
                                        static_cast<int32_t>(sizeof(T)), a.q.stride_bytes);
      value = ToFloat(*RowOf<T>(a.q, byte));
    }
    shared.queries[i] = value;
  }
}

/// Widens the keys and values from `first_key` on; past `end_key` nothing is touched.
template <typename T>
__device__ __forceinline__ void LoadStep(const Arguments& a, const Job& job, int32_t kv_head, int32_t first_key,
                                         const Shared& shared) {
  const int32_t hd = a.head_size;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kStepKeys * hd; i += kThreads) {
    const int32_t row = i / hd, column = i - row * hd;
    float key = 0.0f, value = 0.0f;
    if (first_key + row < job.visible) {
      const uint64_t slot = SlotOf(a, job.first_page, first_key + row);
      key = ToFloat(RowOf<T>(a.keys, slot * a.keys.stride_bytes)[kv_head * hd + column]);
      value = ToFloat(RowOf<T>(a.values, slot * a.values.stride_bytes)[kv_head * hd + column]);
    }
    shared.keys[row * (hd + 1) + column] = key;
    shared.values[i] = value;
  }
}

template <int32_t kSlices>
__device__ __forceinline__ void WeighStep(const Arguments& a, int32_t first_key, const Shared& shared,
                                          WarpState<kSlices>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t first_query = static_cast<int32_t>(threadIdx.x) / 32 * kWarpQueries;
  const float* const queries = shared.queries + first_query * a.head_size;
  const float* const key = shared.keys + lane * (a.head_size + 1);
  float scores[kWarpQueries] = {};
  for (int32_t d = 0; d < a.head_size; ++d) {
#pragma unroll
    for (int32_t i = 0; i < kWarpQueries; ++i) scores[i] = __fmaf_rn(queries[i * a.head_size + d], key[d], scores[i]);
  }
#pragma unroll
  for (int32_t i = 0; i < kWarpQueries; ++i) {
    const float score = state.Sees(i, first_key + lane) ? __fmul_rn(scores[i], a.scale) : MinusInfinity();
    float top = score;
#pragma unroll
    for (int32_t other = 16; other > 0; other /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, other));
    const float largest = fmaxf(state.largest[i], top), reference = Reference(largest);
    const float factor = NaturalScores::Weight(__fadd_rn(state.largest[i], -reference));
    const float weight = NaturalScores::Weight(__fadd_rn(score, -reference));
    state.largest[i] = largest;
    state.total[i] = __fmaf_rn(state.total[i], factor, weight);
    shared.weights[(first_query + i) * kStepKeys + lane] = weight;
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) state.sums[i][c] = __fmul_rn(state.sums[i][c], factor);
  }
}

/// A hidden value must not even be multiplied by its weight of 0: it may be NaN.
template <int32_t kSlices>
__device__ __forceinline__ void AddValues(const Arguments& a, int32_t first_key, const Shared& shared,
                                          WarpState<kSlices>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const float* const weights = shared.weights + static_cast<int32_t>(threadIdx.x) / 32 * kWarpQueries * kStepKeys;
  for (int32_t j = 0; j < kStepKeys; ++j) {
    float value[kSlices];
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) {
      value[c] = lane + 32 * c < a.head_size ? shared.values[j * a.head_size + lane + 32 * c] : 0.0f;
    }
#pragma unroll
    for (int32_t i = 0; i < kWarpQueries; ++i) {
      if (!state.Sees(i, first_key + j)) continue;
      const float weight = weights[i * kStepKeys + j];
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) state.sums[i][c] = __fmaf_rn(weight, value[c], state.sums[i][c]);
    }
  }
}

template <int32_t kSlices>
__device__ __forceinline__ void BeginItem(const Arguments& a, const Job& job, WarpState<kSlices>& state) {
  const int32_t first_query = static_cast<int32_t>(threadIdx.x) / 32 * kWarpQueries;
#pragma unroll
  for (int32_t i = 0; i < kWarpQueries; ++i) {
    const int32_t query = first_query + i;
    const int32_t row = a.group.Quotient(job.first_query + query), position = job.first_position + row;
    state.first[i] = FirstKey(a.window, job.block_length, job.first_position, position);
    state.unseen[i] = job.unseen_key < 0 ? -1 : job.unseen_key + row;
    state.visible[i] = query < job.queries ? VisibleKeys(job.block_length, job.keys, position) : 0;
    state.all_largest[i] = MinusInfinity();
    state.all_total[i] = 0.0f;
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) state.all_sums[i][c] = 0.0f;
  }
}

template <int32_t kSlices>
__device__ __forceinline__ void ClearChunk(WarpState<kSlices>& state) {
#pragma unroll
  for (int32_t i = 0; i < kWarpQueries; ++i) {
    state.largest[i] = MinusInfinity();
    state.total[i] = 0.0f;
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) state.sums[i][c] = 0.0f;
  }
}

/// Keeps the chunk's softmax for the kernel that merges, or adds it to the chunks before.
template <int32_t kSlices>
__device__ __forceinline__ void CloseChunk(const Arguments& a, const Job& job, int32_t kv_head,
                                           WarpState<kSlices>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t first_query = static_cast<int32_t>(threadIdx.x) / 32 * kWarpQueries;
#pragma unroll
  for (int32_t i = 0; i < kWarpQueries; ++i) {
#pragma unroll
    for (int32_t other = 16; other > 0; other /= 2) {
      state.total[i] = __fadd_rn(state.total[i], __shfl_xor_sync(kAllLanes, state.total[i], other));
    }
    if (job.partial < 0) {
      const MergeFactors factors =
          MergeChunk<NaturalScores>(state.largest[i], state.total[i], state.all_largest[i], state.all_total[i]);
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) {
        state.all_sums[i][c] = MergeSum(factors, state.all_sums[i][c], state.sums[i][c]);
      }
    } else if (first_query + i < job.queries) {
      const int64_t row = PartialRow(job, kv_head) + first_query + i;
      if (lane == 0) {
        a.plan.partial_weights[2 * row] = state.largest[i];
        a.plan.partial_weights[2 * row + 1] = state.total[i];
      }
#pragma unroll
      for (int32_t c = 0; c < kSlices; ++c) {
        const int64_t column = lane + 32 * c;
        if (column < a.head_size) a.plan.partial_sums[row * PartialStride(a.head_size) + column] = state.sums[i][c];
      }
    }
  }
}

template <typename T, int32_t kSlices>
__device__ __forceinline__ void StoreOutput(const Arguments& a, const Job& job, int32_t kv_head,
                                            const WarpState<kSlices>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t first_query = static_cast<int32_t>(threadIdx.x) / 32 * kWarpQueries;
#pragma unroll
  for (int32_t i = 0; i < kWarpQueries; ++i) {
    if (first_query + i >= job.queries) continue;
    const uint64_t byte = ElementByte(a, job.first_row, job.first_query + first_query + i, kv_head, lane,
                                      static_cast<int32_t>(sizeof(T)), a.out_stride_bytes);
    T* const to = reinterpret_cast<T*>(static_cast<unsigned char*>(a.out) + byte);
#pragma unroll
    for (int32_t c = 0; c < kSlices; ++c) {
      if (lane + 32 * c < a.head_size) Store(__fdiv_rn(state.all_sums[i][c], state.all_total[i]), to + 32 * c);
    }
  }
}

template <typename T, int32_t kSlices>
__global__ void __launch_bounds__(kThreads, BlocksOf(kSlices)) FloatKernel(const __grid_constant__ Arguments a) {
  const Shared shared = Carve(a.head_size);
  DependencyWait();
  DependencyLaunch();
  const int32_t items = a.plan.counts->jobs * a.kv_heads.divisor;
  WarpState<kSlices> state;
  for (int32_t turn = 0; ItemOf(turn) < items; ++turn) {
    const int32_t item = ItemOf(turn);
    const Job& job = JobOf(a, item);
    const int32_t kv_head = KeyHeadOf(a, item);
    __syncthreads();  // Nobody still reads the queries of the item before.
    LoadQueries<T>(a, job, kv_head, shared);
    BeginItem(a, job, state);
    for (int32_t tile = job.first_tile; tile < job.end_tile;) {
      const int32_t end_tile = min(job.end_tile, ChunkEndTile(tile));
      ClearChunk(state);
      for (int32_t key = tile * kTileKeys; key < end_tile * kTileKeys; key += kStepKeys) {
        __syncthreads();
        LoadStep<T>(a, job, kv_head, key, shared);
        __syncthreads();
        WeighStep(a, key, shared, state);
        __syncwarp();
        AddValues(a, key, shared, state);
      }
      CloseChunk(a, job, kv_head, state);
      tile = end_tile;
    }
    if (job.partial < 0) StoreOutput<T>(a, job, kv_head, state);
  }
}

template <typename T, int32_t kSlices>
cudaError_t LaunchFloat(cudaStream_t stream, int32_t blocks, const Arguments& arguments) {
  return Launch(FloatKernel<T, kSlices>,
                {.grid = dim3(static_cast<uint32_t>(blocks)),
                 .block = dim3(kThreads),
                 .shared_bytes = SharedBytes(arguments.head_size),
                 .stream = stream,
                 .overlap = true},
                arguments);
}

template <typename T>
Variant VariantOf(int32_t head_size) {
  if (head_size <= 64) return {kQueries, BlocksOf(2), LaunchFloat<T, 2>};
  if (head_size <= 128) return {kQueries, BlocksOf(4), LaunchFloat<T, 4>};
  if (head_size <= 256) return {kQueries, BlocksOf(8), LaunchFloat<T, 8>};
  return {kQueries, BlocksOf(16), LaunchFloat<T, 16>};
}

}  // namespace

Variant FloatVariant(DType dtype, int32_t head_size) {
  return dtype == DType::kF32 ? VariantOf<float>(head_size) : VariantOf<__nv_bfloat16>(head_size);
}

}  // namespace quicksilver::attention
