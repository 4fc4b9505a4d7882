#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/host_float.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// Element [row, col] of a matrix in host memory.
inline float Load(const ConstMatrix& m, int64_t row, int64_t col) {
  const int64_t i = row * m.stride + col;
  return m.dtype == DType::kF32 ? static_cast<const float*>(m.data)[i]
                                : Bf16ToFloat(static_cast<const uint16_t*>(m.data)[i]);
}

inline void Store(const Matrix& m, int64_t row, int64_t col, float value) {
  const int64_t i = row * m.stride + col;
  if (m.dtype == DType::kF32) {
    static_cast<float*>(m.data)[i] = value;
  } else {
    static_cast<uint16_t*>(m.data)[i] = FloatToBf16(value);
  }
}

inline float RoundTo(DType dtype, float value) { return dtype == DType::kF32 ? value : RoundToBf16(value); }

/// Angle per position of pair i of a head, all in float as the published models compute it.
inline float RopeFrequency(double theta, int64_t i, int64_t head_size) {
  return 1.0f / std::pow(static_cast<float>(theta), static_cast<float>(2 * i) / static_cast<float>(head_size));
}

}  // namespace quicksilver
