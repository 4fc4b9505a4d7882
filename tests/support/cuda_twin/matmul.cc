#include "tests/support/cuda_twin/matmul.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <vector>

#include "tests/support/cuda_twin/include/cuda_bf16.h"
#include "tests/support/cuda_twin/include/cuda_fp8.h"

namespace quicksilver::cuda_twin {
namespace {

constexpr int kRowsTile = 64;
constexpr int kColumnsTile = 4;

const float* E4m3Table() {
  static const auto* table = [] {
    auto* values = new float[256];
    for (int i = 0; i < 256; ++i) values[i] = E4m3ToFloat(static_cast<unsigned char>(i));
    return values;
  }();
  return table;
}

float Load(const MatrixView& m, int64_t row, int64_t column) {
  const int64_t at = row * m.row_stride + column * m.column_stride;
  switch (m.type) {
    case CUDA_R_32F:
      return static_cast<const float*>(m.data)[at];
    case CUDA_R_16BF:
      return static_cast<const __nv_bfloat16*>(m.data)[at];
    case CUDA_R_8F_E4M3:
      return E4m3Table()[static_cast<const unsigned char*>(m.data)[at]];
    default:
      std::abort();
  }
}

void Store(const MatrixView& m, int64_t row, int64_t column, float value) {
  const int64_t at = row * m.row_stride + column * m.column_stride;
  void* data = const_cast<void*>(m.data);
  if (m.type == CUDA_R_32F) {
    static_cast<float*>(data)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(data)[at] = __nv_bfloat16(value);
  }
}

// out[i][step] for `count` columns from `column` of one row, i the column.
template <typename Element, typename Convert>
void UnpackRow(const Element* data, int64_t stride, int64_t count, int64_t step, float* out, Convert convert) {
  for (int64_t i = 0; i < count; ++i) out[i * step] = convert(data[i * stride]);
}

// Row `row` of m, columns [first, first + count), to out[0], out[step], ...
void Unpack(const MatrixView& m, int64_t row, int64_t first, int64_t count, int64_t step, float* out) {
  const int64_t at = row * m.row_stride + first * m.column_stride;
  const int64_t stride = m.column_stride;
  switch (m.type) {
    case CUDA_R_32F:
      UnpackRow(static_cast<const float*>(m.data) + at, stride, count, step, out, [](float v) { return v; });
      break;
    case CUDA_R_16BF:
      UnpackRow(static_cast<const uint16_t*>(m.data) + at, stride, count, step, out,
                [](uint16_t v) { return std::bit_cast<float>(uint32_t{v} << 16); });
      break;
    default: {
      const float* table = E4m3Table();
      UnpackRow(static_cast<const uint8_t*>(m.data) + at, stride, count, step, out,
                [table](uint8_t v) { return table[v]; });
    }
  }
}

#if defined(__SANITIZE_THREAD__)
#define QS_TWIN_CLONES  // What chooses among them runs before ThreadSanitizer is there.
#else
#define QS_TWIN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif

// sums[c][r] = sum over k of a[k][r] * b[c][k]. Multiplied and added apart, so that every processor gives equal bits.
QS_TWIN_CLONES void MultiplyTile(const float* a, const float* b, int64_t k_count, int64_t b_stride, float* sums) {
  float local[kColumnsTile][kRowsTile] = {};
  for (int64_t k = 0; k < k_count; ++k) {
    for (int c = 0; c < kColumnsTile; ++c) {
      const float factor = b[c * b_stride + k];
      for (int r = 0; r < kRowsTile; ++r) local[c][r] += a[k * kRowsTile + r] * factor;
    }
  }
  for (int c = 0; c < kColumnsTile; ++c) std::copy_n(local[c], kRowsTile, sums + c * kRowsTile);
}

#undef QS_TWIN_CLONES

void Finish(const Product& p, int64_t row, int64_t column, float sum) {
  float value = p.alpha * sum;
  if (p.a_scale != nullptr) value *= p.a_scale[row * p.a_scale_step];
  if (p.b_scale != nullptr) value *= p.b_scale[column * p.b_scale_step];
  if (p.beta != 0.0f) value += p.beta * Load(p.c, row, column);
  Store(p.d, row, column, value);
}

// The sums over k in [first, end), each handed to sink(row, column, sum).
template <typename Sink>
void SumRange(const Product& p, int64_t first, int64_t end, Sink sink) {
  const int64_t m = p.d.rows;
  const int64_t n = p.d.columns;
  const int64_t count = end - first;
  const int64_t n_padded = (n + kColumnsTile - 1) / kColumnsTile * kColumnsTile;
  std::vector<float> b(static_cast<size_t>(n_padded * count));
  for (int64_t c = 0; c < n; ++c) Unpack(p.b.Transposed(), c, first, count, 1, &b[static_cast<size_t>(c * count)]);
  std::vector<float> a(static_cast<size_t>(kRowsTile * count));
  float sums[kColumnsTile * kRowsTile];
  for (int64_t r = 0; r < m; r += kRowsTile) {
    const int64_t rows = std::min<int64_t>(kRowsTile, m - r);
    for (int64_t i = 0; i < rows; ++i) Unpack(p.a, r + i, first, count, kRowsTile, a.data() + i);
    for (int64_t c = 0; c < n; c += kColumnsTile) {
      MultiplyTile(a.data(), &b[static_cast<size_t>(c * count)], count, count, sums);
      for (int64_t j = 0; j < std::min<int64_t>(kColumnsTile, n - c); ++j) {
        for (int64_t i = 0; i < rows; ++i) sink(r + i, c + j, sums[j * kRowsTile + i]);
      }
    }
  }
}

}  // namespace

int64_t ElementBytes(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16BF:
      return 2;
    case CUDA_R_8F_E4M3:
      return 1;
    default:
      return 0;
  }
}

void Multiply(const Product& p) {
  const int64_t k = p.a.columns;
  if (p.splits == 1) {
    SumRange(p, 0, k, [&](int64_t row, int64_t column, float sum) { Finish(p, row, column, sum); });
    return;
  }
  const int64_t m = p.d.rows;
  const int64_t n = p.d.columns;
  for (int s = 0; s < p.splits; ++s) {
    float* partial = p.partial + s * m * n;
    SumRange(p, k * s / p.splits, k * (s + 1) / p.splits,
             [&](int64_t row, int64_t column, float sum) { partial[column * m + row] = sum; });
  }
  for (int64_t column = 0; column < n; ++column) {
    for (int64_t row = 0; row < m; ++row) {
      float sum = 0.0f;
      for (int s = 0; s < p.splits; ++s) sum += p.partial[(s * n + column) * m + row];
      Finish(p, row, column, sum);
    }
  }
}

}  // namespace quicksilver::cuda_twin
