#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cpu/host_matrix.h"
#include "kernels/ops.h"

namespace quicksilver {

// What is done row by row on a device (Ops says what). A row is computed alone and in one fixed order: its bits depend
// neither on other rows nor on where it lies. Any stride, width and alignment is right; rows at multiples of 16 bytes
// are fast. Every function enqueues one kernel and returns what the launch returned. Shapes are checked by the caller.

inline constexpr int64_t kNormColumnsMax = 16384;  ///< Widest row that is normed.
inline constexpr int32_t kRotatedHeadSizeMax = 512;

/// out[r, :] = table[ids[r] - first_id, :], or zeros when there is no such row. Ops::Embed and Ops::GatherRows.
cudaError_t LaunchLookUp(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out, cudaStream_t stream);

/// out[rows[r], :] = x[r, :] where rows[r] >= 0; of one dtype.
cudaError_t LaunchScatter(ConstMatrix x, const int32_t* rows, Matrix out, cudaStream_t stream);

cudaError_t LaunchRmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out, cudaStream_t stream);

cudaError_t LaunchAddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out, cudaStream_t stream);

cudaError_t LaunchAddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x, cudaStream_t stream);

cudaError_t LaunchAddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x, cudaStream_t stream);

cudaError_t LaunchScale(const float* factor, Matrix x, cudaStream_t stream);

cudaError_t LaunchAddBias(const float* bias, Matrix x, cudaStream_t stream);

cudaError_t LaunchGatedMul(Activation activation, ConstMatrix gate_up, Matrix out, cudaStream_t stream);

/// Cosine and sine of every rotated pair of a head for the rows of a step: angles[n, i] = {cos, sin} of positions[n]
/// times the pair's frequency, rounded to `rounding`. angles: [rows, pairs] pairs of floats, aligned to 16 bytes.
cudaError_t LaunchRopeAngles(const int32_t* positions, int32_t rows, double theta, const RopePairs& pairs,
                             DType rounding, float2* angles, cudaStream_t stream);

/// Ops::RotateAndCache with the angles of the step's rows.
struct RotateArguments {
  const float2* angles = nullptr;  ///< [N, pairs.pairs]
  RopePairs pairs;
  const int32_t* slots = nullptr;  ///< [N]
  const float* q_gain = nullptr;   ///< [hd], or null.
  const float* k_gain = nullptr;
  bool float_gain = false;
  bool norm_values = false;
  float epsilon = 0.0f;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  Matrix qkv;
  KvLayer cache;
};
cudaError_t LaunchRotateAndCache(const RotateArguments& arguments, cudaStream_t stream);

}  // namespace quicksilver
