#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/candidate_kernels.h"

namespace quicksilver {

/// The first of `count` ascending biases whose id is at least `id`, or `count`.
__device__ __forceinline__ int32_t LowerBound(const TokenBias* biases, int32_t count, int32_t id) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (biases[middle].id < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// A run of columns of one request's logits, guided and biased. Columns count from the run's first.
struct RowLogits {
  const float* conditional;
  const float* unconditional;  ///< nullptr without guidance.
  float scale;                 ///< guidance + 1
  int32_t columns;             ///< Real ids in the run.
  int32_t first_id;            ///< Global id of column 0.
  int32_t mask;                ///< Columns of the mask and of the suppressed id, which may lie outside of the run.
  int32_t suppressed;
  const TokenBias* biases;  ///< Those of the run's ids.
  int32_t bias_count;

  __device__ __forceinline__ bool Exists(int32_t column) const { return column < columns && column != suppressed; }
  /// Of what a bias of -inf forbids only Forbids() tells; its logit is -inf.
  __device__ __forceinline__ bool MayChoose(int32_t column) const { return Exists(column) && column != mask; }

  /// True when all of [0, count) may be chosen.
  __device__ __forceinline__ bool AllMayBeChosen(int32_t count) const {
    return columns >= count && bias_count == 0 && static_cast<uint32_t>(mask) >= static_cast<uint32_t>(count) &&
           static_cast<uint32_t>(suppressed) >= static_cast<uint32_t>(count);
  }

  /// The first bias of a column from `column` on, or bias_count.
  __device__ __forceinline__ int32_t FirstBias(int32_t column) const {
    return LowerBound(biases, bias_count, first_id + column);
  }

  __device__ __forceinline__ float BiasOf(int32_t column) const {
    if (bias_count == 0) return 0.0f;
    const int32_t at = FirstBias(column);
    return at < bias_count && biases[at].id == first_id + column ? biases[at].bias : 0.0f;
  }

  __device__ __forceinline__ bool Forbids(int32_t column) const { return BiasOf(column) == -INFINITY; }

  /// What -inf forbids is -inf whatever its logit is.
  static __device__ __forceinline__ float Biased(float z, float bias) {
    return bias > -INFINITY ? __fadd_rn(z, bias) : -INFINITY;
  }

  // The sum and the product are rounded one by one, as on the CPU.
  __device__ __forceinline__ float Guide(float c, float u) const { return __fadd_rn(u, __fmul_rn(scale, c - u)); }

  __device__ __forceinline__ float At(int32_t column) const {
    const float c = conditional[column];
    const float z = unconditional == nullptr ? c : Guide(c, unconditional[column]);
    return bias_count == 0 ? z : Biased(z, BiasOf(column));
  }

  /// Columns [column, column + 4), which may reach beyond `columns` up to the next multiple of kPartIds.
  __device__ __forceinline__ void Four(int32_t column, float (&z)[4]) const {
    Load4(conditional + column, z);
    if (unconditional != nullptr) Guide4(column, z);
    if (bias_count != 0) Bias4(column, z);
  }

  __device__ __forceinline__ void Guide4(int32_t column, float (&z)[4]) const {
    float u[4];
    Load4(unconditional + column, u);
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] = Guide(z[i], u[i]);
  }

  __device__ __forceinline__ void Bias4(int32_t column, float (&z)[4]) const {
    int32_t at = FirstBias(column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (at == bias_count || biases[at].id != first_id + column + i) continue;
      z[i] = Biased(z[i], biases[at++].bias);
    }
  }

  static __device__ __forceinline__ void Load4(const float* from, float (&z)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    z[0] = four.x;
    z[1] = four.y;
    z[2] = four.z;
    z[3] = four.w;
  }
};

/// The columns of the tile from `first` on, at most columns_max, as `request` (which is not padding) sees them.
__device__ __forceinline__ RowLogits LogitsOf(const CandidateTile& tile, const CandidateRequest& request, int32_t first,
                                              int32_t columns_max) {
  const float* const begin = tile.logits + first;
  const int32_t first_id = tile.shard.first_id + tile.first + first;
  const int32_t columns = tile.columns - first, end_id = first_id + min(columns, columns_max);
  const TokenBias* const of_request = tile.batch.biases + request.first_bias;
  const int32_t before = LowerBound(of_request, request.bias_count, first_id);
  const int32_t biases = LowerBound(of_request + before, request.bias_count - before, end_id);
  return {.conditional = begin + request.row * tile.stride,
          .unconditional = request.guide_row >= 0 ? begin + request.guide_row * tile.stride : nullptr,
          .scale = request.guidance + 1.0f,
          .columns = columns,
          .first_id = first_id,
          .mask = tile.shard.mask_id - first_id,
          .suppressed = request.suppressed_id - first_id,
          .biases = of_request + before,
          .bias_count = biases};
}

}  // namespace quicksilver
