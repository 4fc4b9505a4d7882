#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace quicksilver {

/// Rows whose largest magnitude is below this become zeros: 127 / amax would be out of range.
inline constexpr float kInt8AmaxMin = 0x1p-100f;

/// values[n, c] = zero + round(x[n, c] * (127 / amax_n)), ties to even, as a byte; scales[n] = amax_n / 127 with amax_n
/// the largest magnitude of the row, so that x is about (value - zero) * scale. A row with amax_n < kInt8AmaxMin gets
/// `zero` everywhere and the scale 0; one that is not finite the scale NaN. x: f32 or bf16; values: [rows, cols],
/// dense. Every row for itself.
void QuantizeRows(ConstMatrix x, uint8_t zero, uint8_t* values, float* scales);

/// Integer sums of one tile into floats, in place: (sums[n, c] - offsets[c]) * row_scales[n] * column_scales[c].
/// sums: [rows, cols], dense.
void ScaleSums(int64_t rows, int64_t cols, const int32_t* offsets, const float* row_scales, const float* column_scales,
               void* sums);

}  // namespace quicksilver
