#pragma once

#include <cstdint>

// Sixteen floats at a time, in the compiler's vector types: one source for SSE, AVX2 and AVX-512, and one fixed order
// of every sum, whatever the alignment. Functions are always inlined into a QS_MULTIVERSIONED caller, which decides
// the instruction set; nothing here may be a lambda or an ordinary inline function, as those keep the baseline's.
#define QS_INLINE inline __attribute__((always_inline))

// Compiled once per instruction set and picked at program start, so one binary runs on any x86-64 machine. Sanitizers
// cannot instrument the start-up choice.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define QS_MULTIVERSIONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define QS_MULTIVERSIONED
#endif

namespace quicksilver::simd {

inline constexpr int kLanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Longs = uint64_t __attribute__((vector_size(128)));
using Halves = uint16_t __attribute__((vector_size(32)));

QS_INLINE Floats Splat(float value) { return value - Floats{}; }

QS_INLINE Floats Load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

/// bf16 is the upper half of a float.
QS_INLINE Floats Load(const uint16_t* p) {
  Halves v;
  __builtin_memcpy(&v, p, sizeof v);
  return reinterpret_cast<Floats>(__builtin_convertvector(v, Words) << 16);
}

QS_INLINE void Store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }

/// Upper halves, rounded to nearest, ties to even; a NaN stays one.
QS_INLINE Words RoundedBf16(Floats v) {
  const Words bits = reinterpret_cast<Words>(v);
  const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded;
}

QS_INLINE void Store(uint16_t* p, Floats v) {
  const Halves h = __builtin_convertvector(RoundedBf16(v), Halves);
  __builtin_memcpy(p, &h, sizeof h);
}

/// The value that Store(T*) would keep.
QS_INLINE Floats RoundAs(const float*, Floats v) { return v; }
QS_INLINE Floats RoundAs(const uint16_t*, Floats v) { return reinterpret_cast<Floats>(RoundedBf16(v) << 16); }

/// The last n < kLanes elements of a row; the other lanes are 0.
template <typename T>
QS_INLINE Floats LoadFirst(const T* p, int64_t n) {
  T lanes[kLanes] = {};
  __builtin_memcpy(lanes, p, static_cast<unsigned long>(n) * sizeof(T));
  return Load(lanes);
}

template <typename T>
QS_INLINE void StoreFirst(T* p, Floats v, int64_t n) {
  T lanes[kLanes];
  Store(lanes, v);
  __builtin_memcpy(p, lanes, static_cast<unsigned long>(n) * sizeof(T));
}

QS_INLINE Floats Max(Floats a, Floats b) { return a > b ? a : b; }

/// Adds the lanes as a tree.
QS_INLINE float Sum(Floats v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return v[0] + v[1];
}

QS_INLINE float Largest(Floats v) {
  v = Max(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = Max(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15));
  v = Max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  return v[0] > v[1] ? v[0] : v[1];
}

QS_INLINE bool Any(Ints v) {
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= v[i];
  return any != 0;
}

/// e^x within 2 units in the last place (Cephes expf). 0 below -87.3, so e^-inf is exactly 0; at most 2.4e38; NaN
/// stays.
QS_INLINE Floats Exp(Floats x) {
  const Floats low = Splat(-87.336544f), high = Splat(88.37f), magic = Splat(12582912.0f);  // 1.5 * 2^23
  Floats c = x < low ? low : x;
  c = c > high ? high : c;
  const Floats shifted = c * 1.44269504088896341f + magic;  // Its low bits hold round(c / ln 2).
  const Floats n = shifted - magic;
  const Floats r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Floats e = p * (r * r) + r + 1.0f;
  const Words exponent = (reinterpret_cast<Words>(shifted) - 0x4B400000u + 127u) << 23;
  return x < low ? Floats{} : e * reinterpret_cast<Floats>(exponent);
}

/// tanh x within a few units in the last place (Cephes tanhf). NaN stays.
QS_INLINE Floats Tanh(Floats x) {
  const Floats size = x < Floats{} ? -x : x, square = x * x;
  Floats p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Floats large = 1.0f - 2.0f / (Exp(size + size) + 1.0f);
  const Floats far = x < Floats{} ? -large : large;
  return size < Splat(0.625f) ? p * square * x + x : far;
}

}  // namespace quicksilver::simd
