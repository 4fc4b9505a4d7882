#pragma once

#include <cstdint>

#include "tests/support/cuda_twin/include/library_types.h"

namespace quicksilver::cuda_twin {

/// A matrix in device memory: element (row, column) is data[row * row_stride + column * column_stride].
struct MatrixView {
  const void* data = nullptr;
  cudaDataType_t type = CUDA_R_32F;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 0;

  MatrixView Transposed() const { return {data, type, columns, rows, column_stride, row_stride}; }
};

/// D = alpha * a_scale[m] * b_scale[n] * A B + beta * C. Null scales are 1.
struct Product {
  MatrixView a;  ///< [m, k]
  MatrixView b;  ///< [k, n]
  MatrixView c;  ///< [m, n], read when beta is not 0.
  MatrixView d;
  float alpha = 1.0f;
  float beta = 0.0f;
  const float* a_scale = nullptr;
  int64_t a_scale_step = 0;  ///< 0: one scale for all.
  const float* b_scale = nullptr;
  int64_t b_scale_step = 0;
  /// The sum over k is one of `splits` sums over runs of k, added in order. In float, each in the order of k.
  int splits = 1;
  float* partial = nullptr;  ///< [splits, n, m], when splits > 1.
};

int64_t ElementBytes(cudaDataType_t type);

void Multiply(const Product& product);

}  // namespace quicksilver::cuda_twin
