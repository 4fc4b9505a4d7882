#pragma once

#include <cstddef>
#include <cstdint>

namespace quicksilver {

using TokenId = int32_t;

enum class DType : uint8_t { kF32, kBf16 };

constexpr size_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

/// A view of a row-major matrix in the memory of one device. Owns nothing. `stride` counts elements from one row
/// to the next, so a view may be a band of columns of a wider matrix. The host must not touch `data` unless the
/// Ops says that its memory is host memory (it never does to the model, the engine or the policies).
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  DType dtype = DType::kF32;
};

struct ConstMatrix {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  DType dtype = DType::kF32;

  ConstMatrix() = default;
  ConstMatrix(const void* d, int64_t r, int64_t c, int64_t s, DType t)
      : data(d), rows(r), cols(c), stride(s), dtype(t) {}
  ConstMatrix(const Matrix& m)  // NOLINT: a mutable view is a const view
      : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride), dtype(m.dtype) {}
};

/// The first `rows` rows of `m`.
inline Matrix TopRows(const Matrix& m, int64_t rows) { return {m.data, rows, m.cols, m.stride, m.dtype}; }

/// Columns [first, first + cols) of `m`.
inline Matrix ColumnBand(const Matrix& m, int64_t first, int64_t cols) {
  return {static_cast<char*>(m.data) + static_cast<size_t>(first) * ElementBytes(m.dtype), m.rows, cols, m.stride,
          m.dtype};
}

}  // namespace quicksilver
