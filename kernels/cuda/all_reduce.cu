#include <cuda_bf16.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int kThreads = 512;
constexpr uint32_t kPollsPerCheck = 64;  // A look at the clock and across the bus, every so many looks at the flag.

// What one thread moves at once.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kWidth = 16 / sizeof(T);
  T element[kWidth];
};

__device__ __forceinline__ bool Aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
__device__ __forceinline__ float Widen(float value) { return value; }
__device__ __forceinline__ float Widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void Narrow(float value, float& out) { out = value; }
__device__ __forceinline__ void Narrow(float value, __nv_bfloat16& out) { out = __float2bfloat16_rn(value); }

__device__ __forceinline__ ExchangeRegion& Own(const Exchange& group) { return *group.regions[group.rank]; }

// Where rank `from` leaves its bytes of `exchange` at rank `at`.
__device__ __forceinline__ unsigned char* Slot(const Exchange& group, int at, int from, uint32_t exchange) {
  return group.regions[at]->slots[exchange & 1u][blockIdx.x][from];
}

__device__ void Fail(const Exchange& group, ExchangeFailure failure, int peer, uint32_t expected, uint32_t found) {
  if (atomicCAS(&Own(group).failed, 0u, 1u) != 0u) return;
  group.report->peer = static_cast<uint32_t>(peer);
  group.report->expected = expected;
  group.report->found = found;
  StoreReleaseSystem(&group.report->failure, static_cast<uint32_t>(failure));
}

// One thread waits for one peer. False: it does not come, or with something else.
__device__ bool Await(const Exchange& group, int peer, uint32_t exchange, uint32_t signature) {
  const ExchangeArrival& arrival = Own(group).arrivals[blockIdx.x][peer];
  uint64_t start = 0;
  for (uint32_t polls = 0; static_cast<int32_t>(LoadAcquireSystem(&arrival.exchange) - exchange) < 0; ++polls) {
    if (polls == 0) start = GlobalNanoseconds();
    if (polls % kPollsPerCheck == kPollsPerCheck - 1) {
      if (LoadAcquireDevice(&Own(group).failed) != 0u) return false;
      if (LoadAcquireSystem(&group.report->abort) != 0u) {
        Fail(group, ExchangeFailure::kAborted, peer, 0, 0);
        return false;
      }
      if (GlobalNanoseconds() - start > group.timeout_nanoseconds) {
        Fail(group, ExchangeFailure::kSilent, peer, 0, 0);
        return false;
      }
    }
    SpinPause();
  }
  const uint32_t found = arrival.signature[exchange & 1u];
  if (found != signature) Fail(group, ExchangeFailure::kDiverged, peer, signature, found);
  return found == signature;
}

// The block's word in shared memory that says whether the group is lost. Every thread calls this first.
__device__ uint32_t* Begin(const Exchange& group) {
  DependencyWait();
  uint32_t* lost = reinterpret_cast<uint32_t*>(SharedMemory());
  if (threadIdx.x == 0) *lost = LoadAcquireDevice(&Own(group).failed);
  __syncthreads();
  return lost;
}

// Raises the flags of `exchange` at the peers, after all that the block has written to their slots, and waits for
// theirs. False when the group is lost. Every thread calls this.
__device__ bool Meet(const Exchange& group, uint32_t exchange, uint32_t signature, uint32_t* lost) {
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < group.ranks && peer != group.rank) {
    ExchangeArrival& arrival = group.regions[peer]->arrivals[blockIdx.x][group.rank];
    arrival.signature[exchange & 1u] = signature;
    StoreReleaseSystem(&arrival.exchange, exchange);
    if (!Await(group, peer, exchange, signature)) atomicExch(lost, 1u);
  }
  __syncthreads();
  return *lost == 0u;
}

// to[i] = from[i]; the threads of the block share the bytes in the same way in every function here, so a thread that
// reads what itself has written needs no barrier.
__device__ void Copy(unsigned char* to, const unsigned char* from, int64_t bytes) {
  const int64_t vectors = Aligned(to) && Aligned(from) ? bytes / 16 : 0;
  for (int64_t i = threadIdx.x; i < vectors; i += kThreads) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  for (int64_t i = vectors * 16 + threadIdx.x; i < bytes; i += kThreads) to[i] = from[i];
}

// Writes `value` to its place in this rank's slot at every peer. kRanks here and below: no less than the ranks.
template <int kRanks, typename Value>
__device__ __forceinline__ void Send(const Exchange& group, uint32_t exchange, int64_t byte, const Value& value) {
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    if (peer >= group.ranks || peer == group.rank) continue;
    *reinterpret_cast<Value*>(Slot(group, peer, group.rank, exchange) + byte) = value;
  }
}

template <int kRanks>
__device__ __forceinline__ void SendAll(const Exchange& group, uint32_t exchange, const unsigned char* from,
                                        int64_t bytes) {
  const int64_t vectors = Aligned(from) ? bytes / 16 : 0;
  for (int64_t i = threadIdx.x; i < vectors; i += kThreads) {
    Send<kRanks>(group, exchange, i * 16, reinterpret_cast<const uint4*>(from)[i]);
  }
  for (int64_t i = vectors * 16 + threadIdx.x; i < bytes; i += kThreads) Send<kRanks>(group, exchange, i, from[i]);
}

// Calls emit(element, sum) for all `count` elements: `own` of this rank plus the slots of the others, in rank order.
template <int kRanks, typename T, typename Emit>
__device__ __forceinline__ void SumInRankOrder(const Exchange& group, uint32_t exchange, const T* own, int64_t count,
                                               const Emit& emit) {
  const unsigned char* slots = Slot(group, group.rank, 0, exchange);
  const auto part = [&](int rank) {
    return rank == group.rank ? own : reinterpret_cast<const T*>(slots + rank * kExchangeSlotBytes);
  };
  constexpr int kWidth = Vector<T>::kWidth;
  const int64_t vectors = Aligned(own) ? count / kWidth : 0;
  for (int64_t i = threadIdx.x; i < vectors; i += kThreads) {
    Vector<T> values[kRanks];
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      if (rank < group.ranks) values[rank] = reinterpret_cast<const Vector<T>*>(part(rank))[i];
    }
    Vector<T> out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      float sum = Widen(values[0].element[j]);
#pragma unroll
      for (int rank = 1; rank < kRanks; ++rank) {
        if (rank < group.ranks) sum = __fadd_rn(sum, Widen(values[rank].element[j]));
      }
      Narrow(sum, out.element[j]);
    }
    emit(i * kWidth, out);
  }
  for (int64_t i = vectors * kWidth + threadIdx.x; i < count; i += kThreads) {
    float sum = Widen(part(0)[i]);
    for (int rank = 1; rank < group.ranks; ++rank) sum = __fadd_rn(sum, Widen(part(rank)[i]));
    T out;
    Narrow(sum, out);
    emit(i, out);
  }
}

// Block b takes the slices b, b + blocks, … of `slice` elements.
template <typename T, int kRanks>
__global__ void __launch_bounds__(kThreads, 1)
    OneShotKernel(const __grid_constant__ Exchange group, T* x, int64_t elements, int64_t slice, uint32_t signature) {
  uint32_t* lost = Begin(group);
  if (*lost != 0u) return;
  uint32_t exchange = Own(group).exchanges[blockIdx.x];
  for (int64_t first = blockIdx.x * slice; first < elements; first += gridDim.x * slice) {
    T* own = x + first;
    const int64_t count = min(slice, elements - first);
    SendAll<kRanks>(group, ++exchange, reinterpret_cast<const unsigned char*>(own),
                    count * static_cast<int64_t>(sizeof(T)));
    if (!Meet(group, exchange, signature, lost)) return;
    SumInRankOrder<kRanks>(group, exchange, own, count, [own](int64_t i, const auto& sum) {
      *reinterpret_cast<std::remove_cvref_t<decltype(sum)>*>(own + i) = sum;
    });
  }
  DependencyLaunch();
  if (threadIdx.x == 0) Own(group).exchanges[blockIdx.x] = exchange;
}

// The same; each slice is cut into one part a rank, the last ones short or empty.
template <typename T, int kRanks>
__global__ void __launch_bounds__(kThreads, 1)
    TwoShotKernel(const __grid_constant__ Exchange group, T* x, int64_t elements, int64_t slice, uint32_t signature) {
  uint32_t* lost = Begin(group);
  if (*lost != 0u) return;
  uint32_t exchange = Own(group).exchanges[blockIdx.x];
  const int64_t part = slice / group.ranks;
  for (int64_t first = blockIdx.x * slice; first < elements; first += gridDim.x * slice) {
    const auto count = [&](int rank) { return max(int64_t{0}, min(part, min(slice, elements - first) - rank * part)); };
    const auto bytes = [&](int rank) { return count(rank) * static_cast<int64_t>(sizeof(T)); };
    const auto place = [&](int rank) { return reinterpret_cast<unsigned char*>(x + first + rank * part); };
    ++exchange;
    for (int step = 1; step < group.ranks; ++step) {
      const int peer = (group.rank + step) % group.ranks;
      Copy(Slot(group, peer, group.rank, exchange), place(peer), bytes(peer));
    }
    if (!Meet(group, exchange, signature, lost)) return;
    T* own = x + first + group.rank * part;
    SumInRankOrder<kRanks>(group, exchange, own, count(group.rank), [&](int64_t i, const auto& sum) {
      *reinterpret_cast<std::remove_cvref_t<decltype(sum)>*>(own + i) = sum;
      Send<kRanks>(group, exchange + 1, i * static_cast<int64_t>(sizeof(T)), sum);
    });
    ++exchange;
    if (!Meet(group, exchange, signature, lost)) return;
    for (int step = 1; step < group.ranks; ++step) {
      const int peer = (group.rank + step) % group.ranks;
      Copy(place(peer), Slot(group, group.rank, peer, exchange), bytes(peer));
    }
  }
  DependencyLaunch();
  if (threadIdx.x == 0) Own(group).exchanges[blockIdx.x] = exchange;
}

__global__ void __launch_bounds__(kThreads, 1)
    GatherKernel(const __grid_constant__ Exchange group, const unsigned char* in, unsigned char* out, int64_t bytes,
                 int64_t slice, uint32_t signature) {
  uint32_t* lost = Begin(group);
  if (*lost != 0u) return;
  uint32_t exchange = Own(group).exchanges[blockIdx.x];
  for (int64_t first = blockIdx.x * slice; first < bytes; first += gridDim.x * slice) {
    const int64_t count = min(slice, bytes - first);
    SendAll<kExchangeRanksMax>(group, ++exchange, in + first, count);
    if (!Meet(group, exchange, signature, lost)) return;
    for (int rank = 0; rank < group.ranks; ++rank) {
      unsigned char* to = out + rank * bytes + first;
      const unsigned char* from = rank == group.rank ? in + first : Slot(group, group.rank, rank, exchange);
      if (to != from) Copy(to, from, count);
    }
  }
  DependencyLaunch();
  if (threadIdx.x == 0) Own(group).exchanges[blockIdx.x] = exchange;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) SumKernel(const T* parts, int ranks, int64_t elements, T* out) {
  DependencyWait();
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < elements; i += gridDim.x * int64_t{kThreads}) {
    float sum = Widen(parts[i]);
    for (int rank = 1; rank < ranks; ++rank) sum = __fadd_rn(sum, Widen(parts[rank * elements + i]));
    Narrow(sum, out[i]);
  }
}

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Division {
  int64_t slice_bytes;
  int64_t blocks;
};

// Enough blocks for every thread to have 16 bytes, and slices that are multiples of `unit` bytes.
Division Divide(int64_t bytes, int64_t slice_bytes_max, int64_t unit) {
  const int64_t blocks = std::clamp(bytes / (kThreads * 16), int64_t{1}, int64_t{kExchangeBlocks});
  const int64_t slice = std::min(slice_bytes_max, DivideUp(DivideUp(bytes, blocks), unit) * unit);
  return {slice, std::min(blocks, DivideUp(bytes, slice))};
}

LaunchShape Shape(int64_t blocks, cudaStream_t stream) {
  return {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kThreads),
          .shared_bytes = 16,
          .stream = stream,
          .overlap = true};
}

template <int kRanks, typename T>
cudaError_t LaunchSum(const Exchange& group, T* x, int64_t elements, bool two_shots, cudaStream_t stream) {
  const int64_t bytes = elements * static_cast<int64_t>(sizeof(T));
  const int64_t slots = two_shots ? group.ranks : 1;
  const auto [slice, blocks] = Divide(bytes, slots * static_cast<int64_t>(kExchangeSlotBytes), slots * 16);
  return Launch(two_shots ? TwoShotKernel<T, kRanks> : OneShotKernel<T, kRanks>, Shape(blocks, stream), group, x,
                elements, slice / static_cast<int64_t>(sizeof(T)),
                ExchangeSignature(false, static_cast<size_t>(bytes)));
}

template <typename T>
cudaError_t LaunchSum(const Exchange& group, void* x, int64_t elements, bool two_shots, cudaStream_t stream) {
  auto* data = static_cast<T*>(x);
  if (group.ranks <= 2) return LaunchSum<2>(group, data, elements, two_shots, stream);
  if (group.ranks <= 4) return LaunchSum<4>(group, data, elements, two_shots, stream);
  return LaunchSum<kExchangeRanksMax>(group, data, elements, two_shots, stream);
}

}  // namespace

cudaError_t LaunchAllReduce(const Exchange& group, void* x, int64_t elements, DType dtype, bool two_shots,
                            cudaStream_t stream) {
  if (dtype == DType::kF32) return LaunchSum<float>(group, x, elements, two_shots, stream);
  return LaunchSum<__nv_bfloat16>(group, x, elements, two_shots, stream);
}

cudaError_t LaunchAllGather(const Exchange& group, const void* in, void* out, size_t bytes, cudaStream_t stream) {
  const auto total = static_cast<int64_t>(bytes);
  const auto [slice, blocks] = Divide(total, kExchangeSlotBytes, 16);
  return Launch(GatherKernel, Shape(blocks, stream), group, static_cast<const unsigned char*>(in),
                static_cast<unsigned char*>(out), total, slice, ExchangeSignature(true, bytes));
}

cudaError_t LaunchRankOrderSum(const void* parts, int32_t ranks, int64_t elements, DType dtype, void* out,
                               cudaStream_t stream) {
  const LaunchShape shape = Shape(std::min(DivideUp(elements, kThreads), int64_t{1024}), stream);
  if (dtype == DType::kF32) {
    return Launch(SumKernel<float>, shape, static_cast<const float*>(parts), ranks, elements, static_cast<float*>(out));
  }
  return Launch(SumKernel<__nv_bfloat16>, shape, static_cast<const __nv_bfloat16*>(parts), ranks, elements,
                static_cast<__nv_bfloat16*>(out));
}

}  // namespace quicksilver
