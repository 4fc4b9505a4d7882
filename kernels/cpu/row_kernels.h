#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace quicksilver {

// What is done row by row, vectorised. Every row is computed alone and in one fixed order, so its bits do not depend on
// how rows are dealt out. Both matrices of a call have the same dtype unless said otherwise. Shapes are checked by the
// caller.

/// RMSNorm of `heads` runs of cols / heads elements in every row.
void NormaliseRows(ConstMatrix x, int64_t heads, const float* gain, float epsilon, Matrix out);
void AddRows(ConstMatrix y, Matrix x);
void AddBiasRows(const float* bias, Matrix x);
void SiluMulRows(ConstMatrix gate_up, Matrix out);
/// Pair i of a head of row n is rotated by cosines[positions[n] * half + i], sines alike; half = cols / heads / 2.
void RotateRows(const int32_t* positions, const float* cosines, const float* sines, int64_t heads, Matrix x);
/// Copies between any two dtypes.
void ConvertRows(ConstMatrix from, Matrix to);

}  // namespace quicksilver
