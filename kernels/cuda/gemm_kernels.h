#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/tensor.h"

namespace quicksilver {

// What the device does around a matrix product. All pointers are device memory.

/// Largest finite e4m3.
inline constexpr float kE4m3Max = 448.0f;

/// A row whose largest magnitude is below this counts as zero: 448 / amax would overflow.
inline constexpr float kQuantizedAmaxMin = 0x1p-100f;

/// to[r, c] = from[r, c] rounded to to.dtype, and 0 where `from` has no such element (to.rows, to.cols may be larger).
cudaError_t LaunchConvertRows(ConstMatrix from, Matrix to, cudaStream_t stream);

/// values: [rows, cols] e4m3, the rows dense, aligned to 16 bytes.
struct QuantizedRows {
  void* values = nullptr;
  float* scales = nullptr;  ///< [rows]
  int64_t rows = 0;
  int64_t cols = 0;  ///< A multiple of 16.
};

/// Quantises every row by itself: scales[r] = amax_c |x[r, c]| / 448, values[r, c] = e4m3(x[r, c] * (448 / amax)), both
/// with correctly rounded float arithmetic, conversions to nearest even. A row with amax < kQuantizedAmaxMin gets zeros
/// and scale 0; a NaN stays a NaN and does not count in amax. Zeros where `from` has no such element. from: f32 or
/// bf16.
cudaError_t LaunchQuantizeRows(ConstMatrix from, const QuantizedRows& to, cudaStream_t stream);

/// out[r, c] = (products[r, c] * row_scales[r]) * column_scales[c], rounded to out.dtype. products: [rows, cols at
/// least out.cols] floats.
cudaError_t LaunchScaleProducts(ConstMatrix products, const float* row_scales, const float* column_scales, Matrix out,
                                cudaStream_t stream);

// The probe: numbers made so that what a product returns is nothing but its rounding errors, which tell one order of
// additions from another. Elements come in pairs, `distance` apart, whose products cancel exactly.

enum class ProbeType : uint8_t { kF32, kBf16, kE4m3 };

struct ProbeMatrix {
  void* values = nullptr;
  ProbeType type = ProbeType::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  float* scales = nullptr;  ///< [rows], in [1, 2); null: none.
};

/// With ProbeRows::ones, how many columns of odd source rows are not 0. Any sum of so many ones is exact in bf16.
inline constexpr int64_t kProbeTail = 256;

/// Row r becomes source row (r * step + shift) % sources: a function of that, of the column and of `seed` alone.
struct ProbeRows {
  uint32_t seed = 0;
  int64_t sources = 1;
  int64_t step = 1;
  int64_t shift = 0;
  bool alternate = false;  ///< The second element of a pair is minus the first (in x), or equal to it (in the weight).
  bool ones =
      false;  ///< All is 1 instead, scales too; of odd source rows only the last kProbeTail columns, the rest 0.
};

__host__ __device__ constexpr int64_t ProbeSource(const ProbeRows& rows, int64_t r) {
  return (r * rows.step + rows.shift) % rows.sources;
}

cudaError_t LaunchFillProbe(const ProbeMatrix& matrix, const ProbeRows& rows, cudaStream_t stream);

/// What a row of an output looks like.
struct RowDigest {
  uint64_t bits = 0;       ///< Of the first `period` columns.
  uint32_t differing = 0;  ///< Columns c with other bits than column c % period.
  uint32_t padding = 0;
};

/// digests: [out.rows].
cudaError_t LaunchDigestRows(ConstMatrix out, int64_t period, RowDigest* digests, cudaStream_t stream);

}  // namespace quicksilver
