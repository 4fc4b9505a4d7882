#pragma once

#include <cstdint>
#include <cstring>

namespace quicksilver {

// 16-bit floats on the host. Narrowing rounds to nearest, ties to even; a NaN stays a (quiet) NaN.

inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t BitsOfFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float Bf16ToFloat(uint16_t value) { return FloatFromBits(uint32_t{value} << 16); }

inline uint16_t FloatToBf16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

inline float RoundToBf16(float value) { return Bf16ToFloat(FloatToBf16(value)); }

/// IEEE binary16: 5 exponent bits, so subnormals and overflow to infinity matter.
inline float F16ToFloat(uint16_t value) {
  const uint32_t sign = uint32_t{value & 0x8000u} << 16;
  const uint32_t exponent = (value >> 10) & 0x1Fu;
  const uint32_t fraction = value & 0x3FFu;
  if (exponent == 0x1Fu) return FloatFromBits(sign | 0x7F800000u | (fraction << 13));
  if (exponent != 0) return FloatFromBits(sign | ((exponent + 112u) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

inline uint16_t FloatToF16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((bits >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above round to infinity.
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing is 2^-24; adding 0.5 (whose spacing is 2^-24) lets the float unit round to it.
    const uint32_t shifted = BitsOfFloat(FloatFromBits(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (shifted - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

}  // namespace quicksilver
