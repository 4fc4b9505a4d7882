#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

using GemmTest = OpsTest;

HostMatrix Product(const HostMatrix& x, const HostMatrix& weight) {
  HostMatrix out(x.rows, weight.rows);
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t o = 0; o < weight.rows; ++o) {
      double sum = 0.0;
      for (int64_t i = 0; i < x.cols; ++i) sum += double{x.at(n, i)} * weight.at(o, i);
      out.at(n, o) = static_cast<float>(sum);
    }
  }
  return out;
}

struct Shape {
  int64_t rows;
  int64_t in;
  int64_t out;
};
// Less than, exactly and more than a tile; odd sizes; several panels of columns and a rest.
constexpr Shape kShapes[] = {{0, 4, 4}, {1, 1, 1}, {3, 5, 7}, {8, 64, 64}, {9, 63, 65}, {40, 192, 130}, {5, 1000, 700}};

TEST_P(GemmTest, MultipliesByTheTransposedWeight) {
  for (const auto& [rows, in, out] : kShapes) {
    for (const DType weight_dtype : {DType::kF32, DType::kBf16}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", in, " by ", out));
      const HostMatrix x = Rounded(RandomMatrix(rows, in, 1), dtype());
      const HostMatrix weight = RandomMatrix(out, in, 2, 1.0f / std::sqrt(static_cast<float>(in)));
      const std::unique_ptr<GemmWeight> prepared = Prepare(weight, weight_dtype);
      EXPECT_EQ(prepared->out_features(), out);
      EXPECT_EQ(prepared->in_features(), in);
      EXPECT_GE(prepared->bytes(), static_cast<size_t>(in * out) * ElementBytes(dtype()));
      const DeviceMatrix device_x = Put(x), result = Space(rows, out);
      ops().Gemm(device_x, *prepared, result);
      const HostMatrix expected = Product(x, Rounded(Rounded(weight, weight_dtype), dtype()));
      // A float sum of `in` products of size 1 / sqrt(in) is off by some 2^-24 times sqrt(in) of them at most.
      ExpectNear(Get(result), expected, RoundingError(dtype()), 1e-6 * std::sqrt(static_cast<double>(in)));
    }
  }
}

TEST_P(GemmTest, WritesUnroundedProductsIntoAFloatMatrix) {
  const HostMatrix x = Rounded(RandomMatrix(11, 96, 1), dtype()),
                   weight = Rounded(RandomMatrix(33, 96, 2, 0.1f), dtype());
  const std::unique_ptr<GemmWeight> prepared = Prepare(weight);
  const DeviceMatrix device_x = Put(x), result = Put(HostMatrix(11, 33), DType::kF32);
  ops().Gemm(device_x, *prepared, result);
  ExpectNear(Get(result), Product(x, weight), 0.0, 1e-5);
}

TEST_P(GemmTest, ReadsAndWritesBandsOfWiderMatrices) {
  const HostMatrix x = Rounded(RandomMatrix(10, 48, 1), dtype()), weight = Rounded(RandomMatrix(20, 16, 2), dtype());
  const std::unique_ptr<GemmWeight> prepared = Prepare(weight);
  const DeviceMatrix device_x = Put(x), result = Space(10, 60);
  ops().Gemm(ColumnBand(device_x, 16, 16), *prepared, ColumnBand(result, 20, 20));
  HostMatrix band(10, 16), expected(10, 60);
  for (int64_t n = 0; n < 10; ++n) {
    for (int64_t i = 0; i < 16; ++i) band.at(n, i) = x.at(n, 16 + i);
  }
  const HostMatrix products = Product(band, weight);
  for (int64_t n = 0; n < 10; ++n) {
    for (int64_t o = 0; o < 20; ++o) expected.at(n, 20 + o) = products.at(n, o);
  }
  ExpectNear(Get(result), expected, RoundingError(dtype()), 1e-5);
}

TEST_P(GemmTest, ReadsAWeightWithAStride) {
  const HostMatrix wide = RandomMatrix(7, 12, 1), x = Rounded(RandomMatrix(2, 9, 2), dtype());
  HostMatrix weight(7, 9);
  for (int64_t o = 0; o < 7; ++o) {
    for (int64_t i = 0; i < 9; ++i) weight.at(o, i) = wide.at(o, i);
  }
  absl::StatusOr<std::unique_ptr<GemmWeight>> prepared =
      ops().PrepareWeight({wide.values.data(), 7, 9, /*stride=*/12, DType::kF32}, WeightRole::kLayer);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const DeviceMatrix device_x = Put(x), result = Space(2, 7);
  ops().Gemm(device_x, **prepared, result);
  ExpectNear(Get(result), Product(x, Rounded(weight, dtype())), RoundingError(dtype()), 1e-5);
}

INSTANTIATE_OPS_TEST(GemmTest);

}  // namespace
}  // namespace quicksilver
