#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/ops.h"

namespace quicksilver {

// Loads, stores and sums of the kernels that work row by row. Elements are moved 16 bytes at a time where their address
// allows it and one by one elsewhere; who computes what, and in which order, is the same either way.

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T FromFloat(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    return __float2bfloat16_rn(value);
  }
}

/// `value` as a T holds it.
template <typename T>
__device__ __forceinline__ float RoundedTo(float value) {
  return ToFloat(FromFloat<T>(value));
}

/// Bytes that V elements are moved in.
template <typename T, int V>
inline constexpr int kMoveBytes = V * sizeof(T) < 16 ? V* static_cast<int>(sizeof(T)) : 16;

template <int kBytes>
struct MoveOf;
template <>
struct MoveOf<4> {
  using Type = uint32_t;
};
template <>
struct MoveOf<8> {
  using Type = uint2;
};
template <>
struct MoveOf<16> {
  using Type = uint4;
};

template <typename T, int V>
__device__ __forceinline__ bool MovesWhole(const T* p, int64_t count) {
  return count >= V && reinterpret_cast<uintptr_t>(p) % kMoveBytes<T, V> == 0;
}

/// v[i] = p[i] for i < count, 0 for the rest.
template <typename T, int V>
__device__ __forceinline__ void LoadRun(const T* p, int64_t count, float (&v)[V]) {
  using Move = typename MoveOf<kMoveBytes<T, V>>::Type;
  constexpr int kMoves = V * sizeof(T) / sizeof(Move);
  if (MovesWhole<T, V>(p, count)) {
    union {
      Move moves[kMoves];
      uint16_t halves[V * sizeof(T) / 2];
      uint32_t words[(V * sizeof(T) + 3) / 4];
    } raw;
#pragma unroll
    for (int m = 0; m < kMoves; ++m) raw.moves[m] = reinterpret_cast<const Move*>(p)[m];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if constexpr (sizeof(T) == sizeof(float)) {
        v[i] = __uint_as_float(raw.words[i]);
      } else {
        v[i] = __uint_as_float(i % 2 == 0 ? raw.words[i / 2] << 16 : raw.words[i / 2] & 0xFFFF0000u);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = i < count ? ToFloat(p[i]) : 0.0f;
  }
}

/// p[i] = v[i], rounded, for i < count.
template <typename T, int V>
__device__ __forceinline__ void StoreRun(T* p, int64_t count, const float (&v)[V]) {
  using Move = typename MoveOf<kMoveBytes<T, V>>::Type;
  constexpr int kMoves = V * sizeof(T) / sizeof(Move);
  if (MovesWhole<T, V>(p, count)) {
    union {
      Move moves[kMoves];
      uint32_t words[V * sizeof(T) / 4];
    } raw;
#pragma unroll
    for (int i = 0; i < V; i += 4 / static_cast<int>(sizeof(T))) {
      if constexpr (sizeof(T) == sizeof(float)) {
        raw.words[i] = __float_as_uint(v[i]);
      } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[i], v[i + 1]);
        memcpy(&raw.words[i / 2], &pair, sizeof pair);
      }
    }
    // An assignment the compiler might cut into words, to merge them with those below.
#pragma unroll
    for (int m = 0; m < kMoves; ++m) __stcg(reinterpret_cast<Move*>(p) + m, raw.moves[m]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i < count) p[i] = FromFloat<T>(v[i]);
    }
  }
}

/// The sum over the 32 lanes, in every lane.
__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xFFFFFFFFu, value, mask));
  return value;
}

/// The sum over all threads of a block of whole warps, in every thread. `shared`: a float a warp.
__device__ __forceinline__ float BlockSum(float value, float* shared) {
  value = WarpSum(value);
  const unsigned int lane = threadIdx.x % 32;
  if (lane == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  return WarpSum(lane < blockDim.x / 32 ? shared[lane] : 0.0f);
}

/// SiLU, or GELU in its form with tanh: (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)).
__device__ __forceinline__ float Activated(Activation activation, float x) {
  float exponent = -x;
  if (activation == Activation::kGeluTanh) {
    const float cubed = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
    exponent = __fmul_rn(-1.5957691216057308f, __fadd_rn(x, cubed));
  }
  return __fdiv_rn(x, __fadd_rn(1.0f, expf(exponent)));
}

/// 1 / sqrt(sum_squares / size + epsilon), every step rounded as on a host.
__device__ __forceinline__ float NormScale(float sum_squares, float size, float epsilon) {
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum_squares, size), epsilon)));
}

}  // namespace quicksilver
