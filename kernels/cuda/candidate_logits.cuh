#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/candidate_kernels.h"

namespace quicksilver {

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

  /// `z`: of the column.
  __device__ __forceinline__ bool Exists(int32_t column, float z) const {
    return column < columns && column != suppressed && (z > -INFINITY || z != z || BiasOf(column) > -INFINITY);
  }
  __device__ __forceinline__ bool MayChoose(int32_t column, float z) const {
    return column != mask && Exists(column, z);
  }

  /// True when all of [0, count) may be chosen.
  __device__ __forceinline__ bool AllMayBeChosen(int32_t count) const {
    return columns >= count && bias_count == 0 && static_cast<uint32_t>(mask) >= static_cast<uint32_t>(count) &&
           static_cast<uint32_t>(suppressed) >= static_cast<uint32_t>(count);
  }

  /// The first bias of a column from `column` on, or bias_count.
  __device__ __forceinline__ int32_t FirstBias(int32_t column) const {
    int32_t low = 0, high = bias_count;
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (biases[middle].id < first_id + column) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  __device__ __forceinline__ float BiasOf(int32_t column) const {
    if (bias_count == 0) return 0.0f;
    const int32_t at = FirstBias(column);
    return at < bias_count && biases[at].id == first_id + column ? biases[at].bias : 0.0f;
  }

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
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] = Biased(z[i], BiasOf(column + i));
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
  const int32_t columns = tile.columns - first;
  RowLogits row = {.conditional = begin + request.row * tile.stride,
                   .unconditional = request.guide_row >= 0 ? begin + request.guide_row * tile.stride : nullptr,
                   .scale = request.guidance + 1.0f,
                   .columns = columns,
                   .first_id = first_id,
                   .mask = tile.shard.mask_id - first_id,
                   .suppressed = request.suppressed_id - first_id,
                   .biases = tile.batch.biases + request.first_bias,
                   .bias_count = request.bias_count};
  if (request.bias_count == 0) return row;
  const int32_t before = row.FirstBias(0);
  row.bias_count = row.FirstBias(min(columns, columns_max)) - before;
  row.biases += before;
  return row;
}

}  // namespace quicksilver
