#pragma once

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "kernels/host_float.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// A dense row-major matrix of a test.
struct HostMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;

  HostMatrix() = default;
  HostMatrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  HostMatrix(int64_t r, int64_t c, std::vector<float> v) : rows(r), cols(c), values(std::move(v)) {}

  float& at(int64_t row, int64_t col) { return values[static_cast<size_t>(row * cols + col)]; }
  float at(int64_t row, int64_t col) const { return values[static_cast<size_t>(row * cols + col)]; }
  const float* row(int64_t r) const { return values.data() + r * cols; }
};

/// Normal numbers of the given deviation; the same for the same seed.
inline HostMatrix RandomMatrix(int64_t rows, int64_t cols, uint32_t seed, float deviation = 1.0f) {
  HostMatrix m(rows, cols);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  for (float& value : m.values) value = normal(generator);
  return m;
}

/// What a device that keeps `dtype` sees of `m`.
inline HostMatrix Rounded(HostMatrix m, DType dtype) {
  if (dtype == DType::kBf16) {
    for (float& value : m.values) value = RoundToBf16(value);
  }
  return m;
}

/// The given rows, in that order.
inline HostMatrix SelectRows(const HostMatrix& m, const std::vector<int32_t>& rows) {
  HostMatrix selected(static_cast<int64_t>(rows.size()), m.cols);
  for (size_t r = 0; r < rows.size(); ++r) {
    for (int64_t c = 0; c < m.cols; ++c) selected.at(static_cast<int64_t>(r), c) = m.at(rows[r], c);
  }
  return selected;
}

}  // namespace quicksilver
