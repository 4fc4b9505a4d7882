#include "kernels/cpu/int8_rows.h"

#include <limits>

#include "kernels/cpu/simd.h"

namespace quicksilver {
namespace {

using simd::Floats;
using simd::Ints;
using simd::kLanes;
using simd::Words;
using Bytes = uint8_t __attribute__((vector_size(kLanes)));

constexpr float kLevels = 127.0f;

template <typename T>
QS_INLINE Floats LoadAt(const T* row, int64_t c, int64_t cols) {
  return cols - c >= kLanes ? simd::Load(row + c) : simd::LoadFirst(row + c, cols - c);
}

/// The largest magnitude as bits: above those of +inf when there is a NaN.
template <typename T>
QS_INLINE uint32_t LargestMagnitude(const T* row, int64_t cols) {
  Words largest = {};
  for (int64_t c = 0; c < cols; c += kLanes) {
    const Words magnitude = reinterpret_cast<Words>(LoadAt(row, c, cols)) & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  uint32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all = largest[i] > all ? largest[i] : all;
  return all;
}

/// Returns the scale.
template <typename T>
QS_INLINE float QuantizeRow(const T* row, int64_t cols, uint8_t zero, uint8_t* values) {
  const uint32_t bits = LargestMagnitude(row, cols);
  float amax;
  __builtin_memcpy(&amax, &bits, sizeof amax);
  if (bits >= 0x7F800000u || amax < kInt8AmaxMin) {
    __builtin_memset(values, zero, static_cast<unsigned long>(cols));
    return bits >= 0x7F800000u ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  const float factor = kLevels / amax;
  const Floats magic = simd::Splat(12582912.0f);  // 1.5 * 2^23: the low bits of a sum with it hold the rounded number.
  for (int64_t c = 0; c < cols; c += kLanes) {
    const Words shifted = reinterpret_cast<Words>(LoadAt(row, c, cols) * factor + magic) + uint32_t{zero};
    const Bytes bytes = __builtin_convertvector(shifted & 0xFFu, Bytes);
    const int64_t left = cols - c;
    __builtin_memcpy(values + c, &bytes, left >= kLanes ? kLanes : static_cast<unsigned long>(left));
  }
  return amax / kLevels;
}

template <typename T>
QS_INLINE void Quantize(const ConstMatrix& x, uint8_t zero, uint8_t* values, float* scales) {
  for (int64_t n = 0; n < x.rows; ++n) {
    scales[n] = QuantizeRow(static_cast<const T*>(x.data) + n * x.stride, x.cols, zero, values + n * x.cols);
  }
}

}  // namespace

QS_MULTIVERSIONED void QuantizeRows(ConstMatrix x, uint8_t zero, uint8_t* values, float* scales) {
  if (x.dtype == DType::kF32) {
    Quantize<float>(x, zero, values, scales);
  } else {
    Quantize<uint16_t>(x, zero, values, scales);
  }
}

QS_MULTIVERSIONED void ScaleSums(int64_t rows, int64_t cols, const int32_t* offsets, const float* row_scales,
                                 const float* column_scales, void* sums) {
  for (int64_t n = 0; n < rows; ++n) {
    char* const row = static_cast<char*>(sums) + n * cols * static_cast<int64_t>(sizeof(int32_t));
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
      Ints sum, offset;
      __builtin_memcpy(&sum, row + c * static_cast<int64_t>(sizeof(int32_t)), sizeof sum);
      __builtin_memcpy(&offset, offsets + c, sizeof offset);
      const Floats scaled =
          __builtin_convertvector(sum - offset, Floats) * row_scales[n] * simd::Load(column_scales + c);
      __builtin_memcpy(row + c * static_cast<int64_t>(sizeof(float)), &scaled, sizeof scaled);
    }
    for (; c < cols; ++c) {
      int32_t sum;
      __builtin_memcpy(&sum, row + c * static_cast<int64_t>(sizeof(int32_t)), sizeof sum);
      const float scaled = static_cast<float>(sum - offsets[c]) * row_scales[n] * column_scales[c];
      __builtin_memcpy(row + c * static_cast<int64_t>(sizeof(float)), &scaled, sizeof scaled);
    }
  }
}

}  // namespace quicksilver
