#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm_kernels.h"
#include "kernels/cuda/gemm_problem.h"
#include "tests/kernels/cuda/gemm_device.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ConvertRowsTest, RoundsToNearestEvenAndFillsWithZeros) {
  const HostMatrix m = RandomMatrix(5, 21, 1);
  for (const DType from : {DType::kF32, DType::kBf16}) {
    for (const DType to : {DType::kF32, DType::kBf16}) {
      for (const int64_t gap : {0, 3, 11}) {
        SCOPED_TRACE(absl::StrCat(from == DType::kF32, to == DType::kF32, " gap ", gap));
        const DeviceRows source(m, from, gap, gap);
        const DeviceRows target(7, 24, to, gap, 0);
        ASSERT_EQ(LaunchConvertRows(source.view(), target.view(), nullptr), cudaSuccess);
        HostMatrix expected(7, 24);
        const HostMatrix rounded = Rounded(Rounded(m, from), to);
        for (int64_t r = 0; r < 5; ++r) std::copy_n(rounded.row(r), 21, expected.values.begin() + r * 24);
        ExpectSameBits(target.Get(), expected);
      }
    }
  }
}

TEST(ConvertRowsTest, WritesNothingBeyondOddColumns) {
  const HostMatrix m = RandomMatrix(4, 24, 2);
  const DeviceRows source(m, DType::kF32), target(4, 19, DType::kF32, 2, 1);
  ASSERT_EQ(LaunchConvertRows(source.view(), target.view(), nullptr), cudaSuccess);
  const HostMatrix written = target.Get();
  for (int64_t r = 0; r < 4; ++r) EXPECT_TRUE(std::equal(written.row(r), written.row(r) + 19, m.row(r)));
}

/// Rows with everything that a row may bring.
HostMatrix HardRows(int64_t cols) {
  HostMatrix m = RandomMatrix(8, cols, 3);
  for (int64_t c = 0; c < cols; ++c) {
    m.at(1, c) = 0.0f;
    m.at(2, c) *= 1e-30f;
    m.at(3, c) *= 1e-33f;  // Counts as zero.
    m.at(4, c) = kNan;
    m.at(7, c) = static_cast<float>(c % 17) - 8.0f;  // Exact ties.
  }
  m.at(5, 2) = kNan;
  m.at(6, 1) = kInfinity;
  return Rounded(m, DType::kBf16);
}

TEST(QuantizeRowsTest, GivesTheDefinedBits) {
  // One warp; some; as many as there may be, with groups in registers and beyond.
  for (const int64_t cols : {16, 40, 2100, 17000}) {
    const HostMatrix m = HardRows(cols);
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const int64_t gap : {0, 5}) {
        SCOPED_TRACE(absl::StrCat(cols, " columns, gap ", gap, dtype == DType::kF32 ? ", f32" : ", bf16"));
        const int64_t padded = RoundUpTo(cols, 16), rows = m.rows + 2;
        const DeviceRows source(m, dtype, gap, gap);
        const DeviceBytes values(static_cast<size_t>(rows * padded)), scales(static_cast<size_t>(rows) * 4);
        const QuantizedRows to = {values.data(), reinterpret_cast<float*>(scales.data()), rows, padded};
        ASSERT_EQ(LaunchQuantizeRows(source.view(), to, nullptr), cudaSuccess);
        const std::vector<uint8_t> codes = values.Get<uint8_t>();
        const std::vector<float> factors = scales.Get<float>();
        for (int64_t r = 0; r < rows; ++r) {
          HostMatrix row(1, padded);
          if (r < m.rows) std::copy_n(m.row(r), cols, row.values.begin());
          const Quantized expected = QuantizeRow(row.row(0), padded);
          ASSERT_EQ(factors[static_cast<size_t>(r)], expected.scale) << "row " << r;
          for (int64_t c = 0; c < padded; ++c) {
            const uint8_t code = codes[static_cast<size_t>(r * padded + c)];
            const uint8_t wanted = expected.values[static_cast<size_t>(c)];
            const bool nan = (wanted & 0x7F) == 0x7F;  // Its sign means nothing.
            ASSERT_EQ(nan ? code & 0x7F : code, nan ? 0x7F : wanted) << "row " << r << ", column " << c;
          }
        }
      }
    }
  }
}

TEST(QuantizeRowsTest, DoesNotDependOnTheOrderOfThreads) {
  const int64_t cols = 4000;
  const HostMatrix m = RandomMatrix(3, cols, 4);
  const DeviceRows source(m, DType::kBf16);
  std::vector<uint8_t> first;
  for (const uint64_t seed : {0, 1, 2, 3}) {
    TwinDevice().SetThreadOrderSeed(seed);
    const DeviceBytes values(3 * cols), scales(12);
    const QuantizedRows to = {values.data(), reinterpret_cast<float*>(scales.data()), 3, cols};
    ASSERT_EQ(LaunchQuantizeRows(source.view(), to, nullptr), cudaSuccess);
    if (seed == 0) first = values.Get<uint8_t>();
    EXPECT_EQ(values.Get<uint8_t>(), first);
  }
  TwinDevice().SetThreadOrderSeed(0);
}

TEST(ScaleProductsTest, MultipliesByTheRowThenByTheColumn) {
  const HostMatrix products = RandomMatrix(6, 32, 5, 1e4f), rows = RandomMatrix(1, 6, 6),
                   columns = RandomMatrix(1, 29, 7);
  const DeviceRows from(products, DType::kF32), row_scales(rows, DType::kF32), column_scales(columns, DType::kF32);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const DeviceRows out(6, 29, dtype, 2);
    ASSERT_EQ(LaunchScaleProducts(from.view(), static_cast<const float*>(row_scales.view().data),
                                  static_cast<const float*>(column_scales.view().data), out.view(), nullptr),
              cudaSuccess);
    HostMatrix expected(6, 29);
    for (int64_t r = 0; r < 6; ++r) {
      for (int64_t c = 0; c < 29; ++c) expected.at(r, c) = products.at(r, c) * rows.at(0, r) * columns.at(0, c);
    }
    ExpectSameBits(out.Get(), Rounded(expected, dtype));
  }
}

std::vector<float> ProbeFloats(const ProbeMatrix& matrix) {
  std::vector<float> floats;
  const size_t count = static_cast<size_t>(matrix.rows * matrix.stride);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (size_t i = 0; i < count; ++i) {
    switch (matrix.type) {
      case ProbeType::kF32:
        floats.push_back(static_cast<const float*>(matrix.values)[i]);
        break;
      case ProbeType::kBf16:
        floats.push_back(Bf16ToFloat(static_cast<const uint16_t*>(matrix.values)[i]));
        break;
      case ProbeType::kE4m3:
        floats.push_back(FromE4m3(static_cast<const uint8_t*>(matrix.values)[i]));
    }
  }
  return floats;
}

// What is left of their products is the rounding of the sums.
TEST(ProbeTest, ProductsCancelButNumbersDoNot) {
  for (const ProbeType type : {ProbeType::kF32, ProbeType::kBf16, ProbeType::kE4m3}) {
    for (const int64_t cols : {16, 48, 512, 1408}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(type), ", ", cols, " columns"));
      const DeviceBytes x_memory(static_cast<size_t>(8 * cols * 4)), weight_memory(static_cast<size_t>(16 * cols * 4));
      const ProbeMatrix x = {x_memory.data(), type, 8, cols, cols, nullptr};
      const ProbeMatrix weight = {weight_memory.data(), type, 16, cols, cols, nullptr};
      ASSERT_EQ(LaunchFillProbe(x, {.seed = 1, .sources = 8, .step = 5, .alternate = true}, nullptr), cudaSuccess);
      ASSERT_EQ(LaunchFillProbe(weight, {.seed = 2, .sources = 16}, nullptr), cudaSuccess);
      const std::vector<float> xs = ProbeFloats(x), weights = ProbeFloats(weight);
      for (int64_t r = 0; r < 8; ++r) {
        for (int64_t o = 0; o < 16; ++o) {
          double sum = 0.0, magnitude = 0.0;
          for (int64_t c = 0; c < cols; ++c) {
            const double product =
                double{xs[static_cast<size_t>(r * cols + c)]} * weights[static_cast<size_t>(o * cols + c)];
            sum += product;
            magnitude += std::abs(product);
          }
          ASSERT_EQ(sum, 0.0);
          ASSERT_GT(magnitude, 0.0);
        }
      }
    }
  }
}

TEST(ProbeTest, RowsRepeatTheirSources) {
  const DeviceBytes memory(20 * 64 * 2);
  const ProbeMatrix x = {memory.data(), ProbeType::kBf16, 20, 64, 64, nullptr};
  const ProbeRows rows = {.seed = 9, .sources = 8, .step = 5, .shift = 3, .alternate = true};
  ASSERT_EQ(LaunchFillProbe(x, rows, nullptr), cudaSuccess);
  const std::vector<float> values = ProbeFloats(x);
  const auto row = [&](int64_t r) {
    return std::vector<float>(values.begin() + r * 64, values.begin() + (r + 1) * 64);
  };
  for (int64_t a = 0; a < 20; ++a) {
    for (int64_t b = 0; b < 20; ++b) EXPECT_EQ(row(a) == row(b), ProbeSource(rows, a) == ProbeSource(rows, b));
  }
}

TEST(ProbeTest, OnesEndTheOddRowsAndFillTheOthers) {
  for (const ProbeType type : {ProbeType::kF32, ProbeType::kBf16, ProbeType::kE4m3}) {
    for (const int64_t cols : {16, 272}) {
      const DeviceBytes memory(static_cast<size_t>(4 * cols * 4)), scales(4 * sizeof(float));
      const ProbeMatrix matrix = {memory.data(), type, 4, cols, cols, reinterpret_cast<float*>(scales.data())};
      ASSERT_EQ(LaunchFillProbe(matrix, {.sources = 2, .ones = true}, nullptr), cudaSuccess);
      const std::vector<float> values = ProbeFloats(matrix);
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const bool one = r % 2 == 0 || c >= cols - kProbeTail;
          ASSERT_EQ(values[static_cast<size_t>(r * cols + c)], one ? 1.0f : 0.0f) << r << ", " << c;
        }
      }
      EXPECT_EQ(scales.Get<float>(), std::vector<float>(4, 1.0f));
    }
  }
}

TEST(DigestRowsTest, SeesEveryBitAndEveryColumn) {
  HostMatrix m(3, 80);
  for (int64_t c = 0; c < 80; ++c) {
    for (int64_t r = 0; r < 3; ++r) m.at(r, c) = static_cast<float>(1 + c % 16);
  }
  m.at(1, 5) = 6.03125f;  // One step of bf16 above.
  m.at(2, 70) = 1.0f;
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const DeviceRows out(m, dtype, 8);
    const DeviceBytes memory(3 * sizeof(RowDigest));
    ASSERT_EQ(LaunchDigestRows(out.view(), 16, reinterpret_cast<RowDigest*>(memory.data()), nullptr), cudaSuccess);
    const std::vector<RowDigest> digests = memory.Get<RowDigest>();
    EXPECT_EQ(digests[0].differing, 0u);
    EXPECT_NE(digests[1].bits, digests[0].bits);
    EXPECT_EQ(digests[1].differing, 4u);  // The others of its kind.
    EXPECT_EQ(digests[2].bits, digests[0].bits);
    EXPECT_EQ(digests[2].differing, 1u);
  }
}

}  // namespace
}  // namespace quicksilver
