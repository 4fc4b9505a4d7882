#pragma once

#include <cmath>
#include <cstdint>

#include "common/check.h"
#include "kernels/host_float.h"
#include "kernels/ops.h"
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

/// Which elements of a head are rotated (RopeParameters): i with i + distance, for i < pairs.
struct RopePairs {
  int64_t pairs = 0;
  int64_t distance = 0;
  int64_t width = 0;  ///< What the frequencies' exponents are relative to.
};

inline RopePairs PairsOf(const RopeParameters& rope, int64_t head_size) {
  const int64_t rotated = rope.rotary_size > 0 ? rope.rotary_size : head_size;
  CHECK(head_size % 2 == 0 && rotated <= head_size && (rotated == head_size || rotated % 4 == 0));
  const int64_t width = rope.proportional ? head_size : rotated;
  return {rotated / 2, width / 2, width};
}

/// Angle per position of pair i of a head, all in float as the published models compute it.
inline float RopeFrequency(double theta, int64_t i, const RopePairs& pairs) {
  return 1.0f / std::pow(static_cast<float>(theta), static_cast<float>(2 * i) / static_cast<float>(pairs.width));
}

}  // namespace quicksilver
