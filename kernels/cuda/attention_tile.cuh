#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/ptx.h"

// One warp's part of a tile: 16 queries over 64 keys. Fragments are those of MmaBf16 (ptx.h): a lane has the queries
// g = lane / 4 and g + 8, and of every 8 keys or 8 columns the two from 2 (lane % 4) on.
namespace quicksilver::attention {

inline constexpr int32_t kWarpQueries = 16;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

/// How a block works on a job. `kWarpGroups` * 16 queries; a head of more than 128 columns is divided among several
/// warps, because one could not hold the sums.
template <int32_t kHeadSize_, int32_t kWarpGroups_, int32_t kStages_, int32_t kBlocks_>
struct Shape {
  static constexpr int32_t kHeadSize = kHeadSize_;
  static constexpr int32_t kWarpGroups = kWarpGroups_;
  static constexpr int32_t kStages = kStages_;  ///< Key tiles in shared memory.
  static constexpr int32_t kBlocks = kBlocks_;  ///< That a multiprocessor has room for.
  static constexpr int32_t kParts = kHeadSize > 128 ? kHeadSize / 128 : 1;
  static constexpr int32_t kColumns = kHeadSize / kParts;  ///< Of a warp.
  static constexpr int32_t kThreads = 32 * kWarpGroups * kParts;
  static constexpr int32_t kTileBytes = kTileKeys * kHeadSize * 2;
  static constexpr int32_t kStageBytes = 2 * kTileBytes;  ///< Keys, then values.
  static constexpr int32_t kExchangeBytes = kParts > 1 ? kThreads* kTileKeys / 2 * 4 : 0;
  static constexpr int32_t kSharedBytes = kStages * kStageBytes + kExchangeBytes;
};

/// Where 16-byte piece `piece` of a row of keys or values lies in its tile. Eight rows of one piece, which is what
/// ldmatrix reads at once, lie in eight different groups of banks.
template <int32_t kHeadSize>
__device__ __forceinline__ int32_t PieceOffset(int32_t row, int32_t piece) {
  return row * kHeadSize * 2 + ((piece ^ (row & 7)) << 4);
}

template <typename S>
struct WarpState {
  uint32_t q[S::kColumns / 16][4];
  float sums[S::kColumns / 8][4];      ///< Of the chunk: of weight * value.
  float all_sums[S::kColumns / 8][4];  ///< Of the chunks before.
  float largest[2];                    ///< Score of the chunk.
  float total[2];                      ///< Weight of the chunk; this lane's share until the chunk ends.
  float all_largest[2];
  float all_total[2];
  int32_t visible[2];  ///< Keys that the lane's two queries see.
  int32_t shortest;    ///< Least of the warp's `visible`.
  int32_t longest;     ///< Most of them; 0 when the warp has no query.
};

using Scores = float[kTileKeys / 8][4];

/// scores = q * keys over this warp's columns, which begin at piece `first_piece`.
template <typename S>
__device__ __forceinline__ void ScoreTile(const WarpState<S>& state, const unsigned char* keys, int32_t first_piece,
                                          Scores& scores) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t row = (lane & 7) + ((lane >> 4) << 3);
#pragma unroll
  for (int32_t n = 0; n < kTileKeys / 8; ++n) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
  for (int32_t k = 0; k < S::kColumns / 16; ++k) {
    const unsigned char* const from = keys + PieceOffset<S::kHeadSize>(row, first_piece + 2 * k + ((lane >> 3) & 1));
#pragma unroll
    for (int32_t n = 0; n < kTileKeys / 8; n += 2) {
      uint32_t b[4];
      LoadMatrix4(b, from + n * 8 * S::kHeadSize * 2);
      MmaBf16(scores[n], state.q[k], {b[0], b[1]});
      MmaBf16(scores[n + 1], state.q[k], {b[2], b[3]});
    }
  }
}

/// Hides the keys at `first_key` + n that a query does not see.
template <typename S>
__device__ __forceinline__ void MaskTile(const WarpState<S>& state, int32_t first_key, Scores& scores) {
  const int32_t lane_key = first_key + static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int32_t n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      if (lane_key + n * 8 + i % 2 >= state.visible[i / 2]) scores[n][i] = MinusInfinity();
    }
  }
}

/// Turns scores into weights, and brings the chunk's sums to the new largest score.
template <typename S>
__device__ __forceinline__ void WeighTile(float scale, Scores& scores, WarpState<S>& state) {
  float factor[2];
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    float top = MinusInfinity();
#pragma unroll
    for (int32_t n = 0; n < kTileKeys / 8; ++n) top = fmaxf(top, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float largest = fmaxf(state.largest[r], __fmul_rn(top, scale));
    const float reference = Reference(largest);
    factor[r] = BinaryScores::Weight(__fadd_rn(state.largest[r], -reference));
    state.largest[r] = largest;
    // The weights are summed as floats: the product below uses them to 16 bits, so rounding them first buys nothing.
    float total = __fmul_rn(state.total[r], factor[r]);
#pragma unroll
    for (int32_t n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int32_t i = 2 * r; i < 2 * r + 2; ++i) {
        scores[n][i] = BinaryScores::Weight(__fmaf_rn(scores[n][i], scale, -reference));
        total = __fadd_rn(total, scores[n][i]);
      }
    }
    state.total[r] = total;
  }
  // Times 1 changes nothing, and is the rule once the largest score has been met.
  if (__all_sync(kAllLanes, factor[0] == 1.0f && factor[1] == 1.0f)) return;
#pragma unroll
  for (int32_t n = 0; n < S::kColumns / 8; ++n) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) state.sums[n][i] = __fmul_rn(state.sums[n][i], factor[i / 2]);
  }
}

/// Two weights as the sum of two bf16 each, good to 17 bits. One bf16 (8 bits) would be the largest error of the whole
/// operation by far: some 1e-3 of a value, where the rest is 1e-6.
__device__ __forceinline__ void SplitWeights(float lower, float upper, uint32_t& high, uint32_t& low) {
  const __nv_bfloat162 rounded = __floats2bfloat162_rn(lower, upper);
  const float2 kept = __bfloat1622float2(rounded);
  const __nv_bfloat162 rest = __floats2bfloat162_rn(__fadd_rn(lower, -kept.x), __fadd_rn(upper, -kept.y));
  memcpy(&high, &rounded, sizeof high);
  memcpy(&low, &rest, sizeof low);
}

/// Makes numbers that are not finite 0; returns which were, lower in bit 0, upper in bit 1.
__device__ __forceinline__ uint32_t KeepFinite(uint32_t& pair) {
  const bool lower = (pair & 0x7F80u) == 0x7F80u, upper = (pair & 0x7F800000u) == 0x7F800000u;
  if (lower) pair &= 0xFFFF0000u;
  if (upper) pair &= 0x0000FFFFu;
  return (lower ? 1u : 0u) + (upper ? 2u : 0u);
}

/// Makes the sums of each query that sees a broken value NaN. `broken`: for each 16 keys 4 bits, of the keys that this
/// lane has in a `b` fragment.
template <typename S>
__device__ __forceinline__ void SpoilSums(uint32_t broken, int32_t first_key, WarpState<S>& state) {
#pragma unroll
  for (int32_t other = 4; other < 32; other *= 2) broken |= __shfl_xor_sync(kAllLanes, broken, other);
  const int32_t lane_key = first_key + static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    uint32_t sees = 0;
#pragma unroll
    for (int32_t i = 0; i < kTileKeys / 4; ++i) {  // Keys 2t, 2t + 1, 2t + 8, 2t + 9 of each 16.
      const int32_t key = lane_key + i / 4 * 16 + i % 4 / 2 * 8 + i % 2;
      if ((broken >> i & 1u) != 0 && key < state.visible[r]) sees = 1;
    }
    sees |= __shfl_xor_sync(kAllLanes, sees, 1);
    sees |= __shfl_xor_sync(kAllLanes, sees, 2);
    if (sees == 0) continue;
#pragma unroll
    for (int32_t n = 0; n < S::kColumns / 8; ++n) state.sums[n][2 * r] = state.sums[n][2 * r + 1] = NAN;
  }
}

/// sums += weights * values, over this warp's columns. kHidden: some of the tile's keys are hidden from some queries,
/// whose weight of 0 must not meet a value that is not finite.
template <typename S, bool kHidden>
__device__ __forceinline__ void AddValues(const Scores& weights, const unsigned char* values, int32_t first_piece,
                                          int32_t first_key, WarpState<S>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t row = lane & 15;
  uint32_t broken = 0;
#pragma unroll
  for (int32_t k = 0; k < kTileKeys / 16; ++k) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const float(&from)[4] = weights[2 * k + i / 2];
      SplitWeights(from[i % 2 * 2], from[i % 2 * 2 + 1], high[i], low[i]);
    }
    // Four products apart, so that none waits for the one before on the same sums.
#pragma unroll
    for (int32_t n = 0; n < S::kColumns / 8; n += 4) {
      uint32_t b[2][4];
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        const int32_t piece = first_piece + n + 2 * h + (lane >> 4);
        LoadMatrix4Transposed(b[h], values + k * 16 * S::kHeadSize * 2 + PieceOffset<S::kHeadSize>(row, piece));
        if constexpr (kHidden) {
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) broken |= KeepFinite(b[h][i]) << (4 * k + i % 2 * 2);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) MmaBf16(state.sums[n + i], high, {b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]});
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) MmaBf16(state.sums[n + i], low, {b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]});
    }
  }
  if constexpr (kHidden) SpoilSums(broken, first_key, state);
}

/// Begins a softmax over no keys.
template <typename S>
__device__ __forceinline__ void ClearChunk(WarpState<S>& state) {
#pragma unroll
  for (int32_t n = 0; n < S::kColumns / 8; ++n) {
    state.sums[n][0] = state.sums[n][1] = state.sums[n][2] = state.sums[n][3] = 0.0f;
  }
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    state.largest[r] = MinusInfinity();
    state.total[r] = 0.0f;
  }
}

/// Adds the four lanes' shares of the total.
template <typename S>
__device__ __forceinline__ void CloseChunk(WarpState<S>& state) {
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    state.total[r] = __fadd_rn(state.total[r], __shfl_xor_sync(kAllLanes, state.total[r], 1));
    state.total[r] = __fadd_rn(state.total[r], __shfl_xor_sync(kAllLanes, state.total[r], 2));
  }
}

/// Adds the chunk to the chunks before.
template <typename S>
__device__ __forceinline__ void MergeIntoAll(WarpState<S>& state) {
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const MergeFactors factors =
        MergeChunk<BinaryScores>(state.largest[r], state.total[r], state.all_largest[r], state.all_total[r]);
#pragma unroll
    for (int32_t n = 0; n < S::kColumns / 8; ++n) {
#pragma unroll
      for (int32_t i = 2 * r; i < 2 * r + 2; ++i) {
        state.all_sums[n][i] = MergeSum(factors, state.all_sums[n][i], state.sums[n][i]);
      }
    }
  }
}

}  // namespace quicksilver::attention
