#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/gemm_kernels.h"
#include "kernels/host_float.h"
#include "tests/support/random_matrix.h"

namespace quicksilver {

/// Device memory with a copy of host memory.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), cudaSuccess);
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  void Set(const void* host) const { EXPECT_EQ(cudaMemcpy(data_, host, bytes_, cudaMemcpyHostToDevice), cudaSuccess); }
  template <typename T>
  std::vector<T> Get() const {
    std::vector<T> host(bytes_ / sizeof(T));
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

/// A matrix on the device whose rows are `gap` elements apart and begin `offset` elements into the allocation.
class DeviceRows {
 public:
  DeviceRows(const HostMatrix& m, DType dtype, int64_t gap = 0, int64_t offset = 0)
      : rows_(m.rows), cols_(m.cols), stride_(m.cols + gap), offset_(offset), dtype_(dtype), bytes_(Bytes()) {
    std::vector<float> wide(static_cast<size_t>(offset + rows_ * stride_), kGapValue);
    for (int64_t r = 0; r < rows_; ++r) std::copy_n(m.row(r), cols_, wide.begin() + offset + r * stride_);
    std::vector<uint16_t> narrow;
    for (const float value : wide) narrow.push_back(FloatToBf16(value));
    bytes_.Set(dtype == DType::kF32 ? static_cast<const void*>(wide.data()) : narrow.data());
  }
  DeviceRows(int64_t rows, int64_t cols, DType dtype, int64_t gap = 0, int64_t offset = 0)
      : DeviceRows(HostMatrix(rows, cols), dtype, gap, offset) {}

  Matrix view() const {
    char* const data = bytes_.data() + offset_ * static_cast<int64_t>(ElementBytes(dtype_));
    return {data, rows_, cols_, stride_, dtype_};
  }

  /// Fails when something was written between the rows.
  HostMatrix Get() const {
    const std::vector<float> wide = Floats();
    HostMatrix m(rows_, cols_);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        const float value = wide[static_cast<size_t>(offset_ + r * stride_ + c)];
        if (c < cols_) {
          m.at(r, c) = value;
        } else {
          EXPECT_EQ(value, kGapValue) << "written between the rows, at row " << r << ", column " << c;
        }
      }
    }
    return m;
  }

 private:
  static constexpr float kGapValue = 12352.0f;

  size_t Bytes() const { return static_cast<size_t>(offset_ + rows_ * stride_) * ElementBytes(dtype_); }
  std::vector<float> Floats() const {
    if (dtype_ == DType::kF32) return bytes_.Get<float>();
    std::vector<float> floats;
    for (const uint16_t value : bytes_.Get<uint16_t>()) floats.push_back(Bf16ToFloat(value));
    return floats;
  }

  int64_t rows_, cols_, stride_, offset_;
  DType dtype_;
  DeviceBytes bytes_;
};

inline void ExpectSameBits(const HostMatrix& actual, const HostMatrix& expected) {
  ASSERT_EQ(actual.rows, expected.rows);
  ASSERT_EQ(actual.cols, expected.cols);
  for (size_t i = 0; i < actual.values.size(); ++i) {
    ASSERT_EQ(BitsOfFloat(actual.values[i]), BitsOfFloat(expected.values[i]))
        << "row " << static_cast<int64_t>(i) / actual.cols << ", column " << static_cast<int64_t>(i) % actual.cols
        << ": " << actual.values[i] << " and " << expected.values[i];
  }
}

inline bool HaveSameBits(const HostMatrix& a, const HostMatrix& b) {
  return a.values.size() == b.values.size() &&
         std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0;
}

// e4m3 by its definition: sign, 4 bits of exponent (bias 7), 3 of fraction, no infinities, one NaN a sign.

inline float FromE4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  if ((code & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                        : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

/// To the nearest, ties to the even code, saturating.
inline uint8_t ToE4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return 0x7F;
  const double magnitude = std::abs(static_cast<double>(value));
  uint8_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (uint8_t code = 0; code < 0x7F; ++code) {
    const double distance = std::abs(magnitude - static_cast<double>(FromE4m3(code)));
    if (distance < least || (distance == least && code % 2 == 0)) best = code, least = distance;
  }
  return sign | best;
}

struct Quantized {
  std::vector<uint8_t> values;
  float scale = 0.0f;
};

inline Quantized QuantizeRow(const float* row, int64_t cols) {
  float amax = 0.0f;
  for (int64_t c = 0; c < cols; ++c) {
    if (std::abs(row[c]) > amax) amax = std::abs(row[c]);
  }
  Quantized quantized;
  const bool zero = amax < kQuantizedAmaxMin;
  quantized.scale = zero ? 0.0f : amax / 448.0f;
  for (int64_t c = 0; c < cols; ++c) quantized.values.push_back(ToE4m3(row[c] * (zero ? 0.0f : 448.0f / amax)));
  return quantized;
}

/// What e4m3 keeps of a matrix.
inline HostMatrix Requantized(const HostMatrix& m) {
  HostMatrix kept(m.rows, m.cols);
  for (int64_t r = 0; r < m.rows; ++r) {
    const Quantized quantized = QuantizeRow(m.row(r), m.cols);
    for (int64_t c = 0; c < m.cols; ++c) {
      kept.at(r, c) = FromE4m3(quantized.values[static_cast<size_t>(c)]) * quantized.scale;
    }
  }
  return kept;
}

}  // namespace quicksilver
