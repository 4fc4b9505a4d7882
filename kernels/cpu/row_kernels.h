#pragma once

#include <cstdint>

#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace quicksilver {

// What is done row by row, vectorised. Every row is computed alone and in one fixed order, so its bits do not depend on
// how rows are dealt out. Both matrices of a call have the same dtype unless said otherwise. Shapes are checked by the
// caller.

/// RMSNorm of `heads` runs of cols / heads elements in every row.
void NormaliseRows(ConstMatrix x, int64_t heads, NormGain gain, float epsilon, Matrix out);
/// x += RMSNorm(y), both rounded.
void AddNormalisedRows(ConstMatrix y, NormGain gain, float epsilon, Matrix x);
void AddRows(ConstMatrix y, Matrix x);
void ScaleRows(float factor, Matrix x);
void AddBiasRows(const float* bias, Matrix x);
/// out[n, i] = activation(gate_up[n, i]) * gate_up[n, I + i]. `out` may be the first half of gate_up.
void GatedMulRows(Activation activation, ConstMatrix gate_up, Matrix out);
/// out[n, :] = the sum over j < k, in order, of weights[n, j] * from[rows[n, j], :], rounded; negative rows count 0.
/// add: the sum is added to what `out` holds.
void WeightedSumRows(ConstMatrix from, const int32_t* rows, const float* weights, int32_t k, bool add, Matrix out);
/// Elements i and i + distance of a head of row n, for i < pairs, are rotated by cosines[positions[n] * pairs + i],
/// sines alike.
struct RowRotation {
  const int32_t* positions = nullptr;
  const float* cosines = nullptr;
  const float* sines = nullptr;
  int64_t pairs = 0;
  int64_t distance = 0;
};
void RotateRows(const RowRotation& rotation, int64_t heads, Matrix x);
/// Copies between any two dtypes.
void ConvertRows(ConstMatrix from, Matrix to);

}  // namespace quicksilver
