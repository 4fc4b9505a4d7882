#include "kernels/cuda/candidate_logits.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

/// Keys in shared memory. A power of two, and room for what a TopState keeps.
constexpr int32_t kBufferKeys = 2048;
static_assert(kBufferKeys >= 2 * kTopKeysMax && kTopKeysMax >= kTopLogitsMax);

/// Orders as the list does: larger logit first, then smaller id. Never 0.
__device__ __forceinline__ uint64_t KeyOf(float logit, int32_t id) {
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));  // -0 and 0 are equal.
  const uint32_t ordered = bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
  return uint64_t{ordered} << 32 | ~static_cast<uint32_t>(id);
}

__device__ __forceinline__ TopLogit LogitOfKey(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = ordered ^ ((ordered >> 31) != 0 ? 0x80000000u : 0xFFFFFFFFu);
  return {__uint_as_float(bits), static_cast<int32_t>(~static_cast<uint32_t>(key))};
}

/// The keys of one request that a block works on. All threads call every function.
struct TopBuffer {
  uint64_t* keys;    ///< [kBufferKeys], shared.
  int32_t* claimed;  ///< Shared: keys that wanted to enter since the last reset.
  uint64_t* stored;  ///< [kTopKeysMax], global: keys of earlier tiles that have not been looked at again.
  int32_t stored_count;
  int32_t top_count;
  uint64_t threshold;

  __device__ __forceinline__ void Reset(int32_t count) const {
    if (threadIdx.x == 0) *claimed = count;
    __syncthreads();
  }

  /// Bitonic: descending, in place.
  __device__ void Sort(int32_t count) const {
    int32_t size = 2;
    while (size < count) size *= 2;
    for (int32_t i = count + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0;
    __syncthreads();
    for (int32_t length = 2; length <= size; length *= 2) {
      for (int32_t gap = length / 2; gap > 0; gap /= 2) {
        for (int32_t i = threadIdx.x; i < size / 2; i += blockDim.x) {
          const int32_t low = 2 * i - (i & (gap - 1));
          const uint64_t a = keys[low], b = keys[low + gap];
          if ((a < b) == ((low & length) == 0)) {
            keys[low] = b;
            keys[low + gap] = a;
          }
        }
        __syncthreads();
      }
    }
  }

  /// Sorts `count` keys and the stored ones. Returns how many there are.
  __device__ int32_t SortWithStored(int32_t count) {
    for (int32_t i = threadIdx.x; i < stored_count; i += blockDim.x) keys[count + i] = stored[i];
    count += stored_count;
    stored_count = 0;
    Sort(count);  // Starts with a barrier, or writes what this thread has written or nobody.
    return count;
  }

  /// Keeps the list of `count` keys and the stored ones, and raises the threshold when the list is full.
  __device__ int32_t Shrink(int32_t count) {
    count = SortWithStored(count);
    if (count < top_count) return count;
    threshold = keys[top_count - 1];
    return top_count;
  }

  /// Takes in the columns [column, column + 4) of this thread. Returns the keys in the buffer.
  __device__ int32_t Take(const RowLogits& row, int32_t column, const float (&z)[4]) {
    bool waits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      waits[i] = row.MayChoose(column + i) && (z[i] > -INFINITY || !row.Forbids(column + i));
    }
    for (;;) {
      const int32_t room = kBufferKeys - stored_count;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint64_t key = KeyOf(z[i], row.first_id + column + i);
        waits[i] = waits[i] && key > threshold;
        if (!waits[i]) continue;
        const int32_t place = atomicAdd(claimed, 1);
        if (place >= room) continue;
        keys[place] = key;
        waits[i] = false;
      }
      __syncthreads();
      const int32_t wanted = *claimed;
      __syncthreads();
      if (wanted <= room) return wanted;
      Reset(Shrink(room));
    }
  }
};

/// One block per request.
__global__ void __launch_bounds__(1024, 1)
    TopLogitsKernel(CandidateTile tile, int32_t top_count, TopState* states, uint64_t* kept_keys, TopLogit* top) {
  DependencyWait();
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  const CandidateRequest request = tile.batch.requests[r];
  const TopState before = tile.first > 0 ? states[r] : TopState();
  uint64_t* const keys = reinterpret_cast<uint64_t*>(SharedMemory());
  TopBuffer buffer = {.keys = keys,
                      .claimed = reinterpret_cast<int32_t*>(keys + kBufferKeys),
                      .stored = kept_keys + static_cast<int64_t>(r) * kTopKeysMax,
                      .stored_count = before.count,
                      .top_count = top_count,
                      .threshold = before.threshold};
  int32_t count = 0;
  buffer.Reset(0);
  if (request.row >= 0) {
    const RowLogits row = LogitsOf(tile, request, 0, tile.columns);
    const int32_t step = 4 * static_cast<int32_t>(blockDim.x);
    int32_t column = 4 * static_cast<int32_t>(threadIdx.x);
    float next[4] = {};
    if (column < row.columns) row.Four(column, next);
    for (int32_t begin = 0; begin < row.columns; begin += step, column += step) {
      const float now[4] = {next[0], next[1], next[2], next[3]};
      if (column + step < row.columns) row.Four(column + step, next);
      count = buffer.Take(row, column, now);
    }
  }
  if (top != nullptr) {
    count = min(buffer.SortWithStored(count), top_count);
    for (int32_t i = threadIdx.x; i < top_count; i += blockDim.x) {
      top[static_cast<int64_t>(r) * top_count + i] = i < count ? LogitOfKey(keys[i]) : TopLogit{-INFINITY, -1};
    }
    return;
  }
  if (buffer.stored_count + count > kTopKeysMax) count = buffer.Shrink(count);
  for (int32_t i = threadIdx.x; i < count; i += blockDim.x) buffer.stored[buffer.stored_count + i] = keys[i];
  if (threadIdx.x == 0) states[r] = {buffer.threshold, buffer.stored_count + count, 0};
}

}  // namespace

cudaError_t LaunchTopLogits(const CandidateTile& tile, int32_t top_count, TopState* states, uint64_t* keys,
                            TopLogit* top, cudaStream_t stream) {
  // Few requests have long tiles and leave most of the device idle: more threads then shorten the wait.
  constexpr int32_t kLongTile = 8192;
  return Launch(TopLogitsKernel,
                {.grid = dim3(static_cast<uint32_t>(tile.batch.count)),
                 .block = dim3(tile.columns > kLongTile ? 1024 : 256),
                 .shared_bytes = kBufferKeys * sizeof(uint64_t) + sizeof(uint64_t),
                 .stream = stream,
                 .overlap = true},
                tile, top_count, states, keys, top);
}

}  // namespace quicksilver
