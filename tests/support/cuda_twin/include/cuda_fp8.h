#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda_runtime_api.h"

// FP8 as CUDA has it: E4M3 has 4 exponent bits (bias 7), 3 fraction bits, no infinity and one NaN (0x7F); largest 448.

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned int;

enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

namespace quicksilver::cuda_twin {

/// To nearest, ties to even. Beyond 448: 448 when `saturate`, else NaN. NaN becomes 0x7F.
inline unsigned char FloatToE4m3(float value, bool saturate) {
  const unsigned char sign = std::signbit(value) ? 0x80 : 0x00;
  if (std::isnan(value)) return 0x7F;
  const float magnitude = std::fabs(value);
  // Values below 2^-6 are multiples of 2^-9; above, of 2^(exponent - 3).
  const int exponent = magnitude < 0x1p-6f ? -6 : std::min(std::ilogb(magnitude), 9);
  const float steps = std::nearbyint(std::ldexp(magnitude, 3 - exponent));
  const int code = static_cast<int>(std::fmin(steps, 64.0f)) + ((exponent + 6) << 3);
  if (magnitude > 464.0f || code > 0x7E) return static_cast<unsigned char>(sign | (saturate ? 0x7E : 0x7F));
  return static_cast<unsigned char>(sign | code);
}

inline float E4m3ToFloat(unsigned char bits) {
  const int exponent = (bits >> 3) & 0xF;
  const int fraction = bits & 7;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                  : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  if ((bits & 0x7F) == 0x7F) magnitude = std::nanf("");
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace quicksilver::cuda_twin

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t saturate, __nv_fp8_interpretation_t) {
  return quicksilver::cuda_twin::FloatToE4m3(value, saturate == __NV_SATFINITE);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 value, __nv_saturation_t saturate,
                                                     __nv_fp8_interpretation_t kind) {
  const unsigned low = __nv_cvt_float_to_fp8(value.x, saturate, kind);
  const unsigned high = __nv_cvt_float_to_fp8(value.y, saturate, kind);
  return static_cast<__nv_fp8x2_storage_t>(low | (high << 8));
}

struct __nv_fp8_e4m3 {
  __nv_fp8_storage_t __x;

  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float value) : __x(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)) {}
  explicit operator float() const { return quicksilver::cuda_twin::E4m3ToFloat(__x); }
};
