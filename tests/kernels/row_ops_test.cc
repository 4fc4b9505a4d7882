#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};
// Empty, one row, odd sizes, whole vectors, a model's size.
constexpr Shape kShapes[] = {{0, 8}, {1, 1}, {3, 63}, {5, 16}, {17, 200}, {4, 4096}};

/// Runs every operation on the implementation under test and on the reference of the same activation type.
class RowOpsTest : public OpsTest {
 protected:
  void SetUp() override {
    OpsTest::SetUp();
    reference_.UseOps(MakeReferenceOps(dtype()));
  }

  class Reference : public OpsTestBase {
    void TestBody() override {}
  };
  Reference reference_;
};

HostMatrix RunRmsNorm(OpsTestBase& test, const HostMatrix& x, const HostMatrix& gain, float epsilon) {
  const DeviceMatrix device_x = test.Put(x), out = test.Space(x.rows, x.cols);
  const DeviceArray<float> device_gain = test.PutArray(gain.values);
  test.ops().RmsNorm(device_x, device_gain.data(), epsilon, out);
  return test.Get(out);
}

TEST_P(RowOpsTest, RmsNormAgreesWithTheReference) {
  for (const auto& [rows, cols] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", cols));
    const HostMatrix x = RandomMatrix(rows, cols, 1), gain = RandomMatrix(1, cols, 2);
    // The float sums are taken in another order, and a value may then round the other way, twice.
    ExpectNear(RunRmsNorm(*this, x, gain, 1e-6f), RunRmsNorm(reference_, x, gain, 1e-6f),
               4 * RoundingError(dtype()) + 1e-6, 0.0);
  }
}

TEST_P(RowOpsTest, RmsNormInPlaceGivesTheSameBits) {
  const HostMatrix x = RandomMatrix(3, 100, 1), gain = RandomMatrix(1, 100, 2);
  const DeviceMatrix device_x = Put(x);
  const DeviceArray<float> device_gain = PutArray(gain.values);
  ops().RmsNorm(device_x, device_gain.data(), 1e-5f, device_x);
  ExpectSameBits(Get(device_x), RunRmsNorm(*this, x, gain, 1e-5f));
}

TEST_P(RowOpsTest, RmsNormOfARowOfZerosIsZero) {
  ExpectNear(RunRmsNorm(*this, HostMatrix(2, 33), RandomMatrix(1, 33, 2), 1e-6f), HostMatrix(2, 33), 0.0, 0.0);
}

TEST_P(RowOpsTest, HeadRmsNormIsRmsNormOfEveryHead) {
  const int32_t heads = 3;
  const HostMatrix x = RandomMatrix(5, heads * 24, 1), gain = RandomMatrix(1, 24, 2);
  const DeviceMatrix device_x = Put(x);
  const DeviceArray<float> device_gain = PutArray(gain.values);
  ops().HeadRmsNorm(device_x, heads, device_gain.data(), 1e-6f);
  const HostMatrix all = Get(device_x);
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t head = 0; head < heads; ++head) {
      HostMatrix run(1, 24), got(1, 24);
      for (int64_t c = 0; c < 24; ++c) run.at(0, c) = x.at(n, head * 24 + c), got.at(0, c) = all.at(n, head * 24 + c);
      ExpectSameBits(got, RunRmsNorm(*this, run, gain, 1e-6f));
    }
  }
}

TEST_P(RowOpsTest, AddRoundsTheSumOnce) {
  for (const auto& [rows, cols] : kShapes) {
    const HostMatrix x = Rounded(RandomMatrix(rows, cols, 1), dtype()),
                     y = Rounded(RandomMatrix(rows, cols, 2), dtype());
    const DeviceMatrix device_x = Put(x), device_y = Put(y);
    ops().Add(device_y, device_x);
    HostMatrix expected = x;
    for (size_t i = 0; i < x.values.size(); ++i) expected.values[i] += y.values[i];
    ExpectSameBits(Get(device_x), Rounded(expected, dtype()));
  }
}

TEST_P(RowOpsTest, AddBiasAddsTheUnroundedBiasToEveryRow) {
  for (const auto& [rows, cols] : kShapes) {
    const HostMatrix x = Rounded(RandomMatrix(rows, cols, 1), dtype()), bias = RandomMatrix(1, cols, 2);
    const DeviceMatrix device_x = Put(x);
    const DeviceArray<float> device_bias = PutArray(bias.values);
    ops().AddBias(device_bias.data(), device_x);
    HostMatrix expected = x;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < cols; ++c) expected.at(n, c) += bias.at(0, c);
    }
    ExpectSameBits(Get(device_x), Rounded(expected, dtype()));
  }
}

HostMatrix RunSiluMul(OpsTestBase& test, const HostMatrix& gate_up) {
  const DeviceMatrix in = test.Put(gate_up), out = test.Space(gate_up.rows, gate_up.cols / 2);
  test.ops().SiluMul(in, out);
  return test.Get(out);
}

TEST_P(RowOpsTest, SiluMulAgreesWithTheReference) {
  for (const auto& [rows, cols] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", cols));
    const HostMatrix gate_up = RandomMatrix(rows, 2 * cols, 1, 3.0f);
    // e^x may differ in its last two bits.
    ExpectNear(RunSiluMul(*this, gate_up), RunSiluMul(reference_, gate_up), 2 * RoundingError(dtype()) + 5e-7, 0.0);
  }
}

TEST_P(RowOpsTest, SiluMulStaysFiniteForLargeGates) {
  const HostMatrix gate_up(1, 8, {-200.0f, -88.0f, 88.0f, 200.0f, 1.0f, 2.0f, 3.0f, 0.5f});
  // silu(-200) is 0 and silu(200) is 200, to any tolerance.
  ExpectNear(RunSiluMul(*this, gate_up), HostMatrix(1, 4, {0.0f, 0.0f, 264.0f, 100.0f}), 0.0, 1e-30);
}

HostMatrix RunRope(OpsTestBase& test, const HostMatrix& x, const std::vector<int32_t>& positions, int32_t heads,
                   const RopeParameters& rope) {
  const DeviceMatrix device_x = test.Put(x);
  const DeviceArray<int32_t> device_positions = test.PutArray(positions);
  test.ops().Rope(device_positions.data(), rope, heads, device_x);
  return test.Get(device_x);
}

TEST_P(RowOpsTest, RopeAgreesWithTheReferenceAtAnyPosition) {
  const std::vector<int32_t> positions = {0, 1, 7, 4095, 2, 32000};
  for (const bool full_precision : {false, true}) {
    for (const int64_t head_size : {2, 6, 32, 80, 128}) {
      SCOPED_TRACE(absl::StrCat("hd=", head_size, " full precision ", full_precision));
      const HostMatrix x = RandomMatrix(6, 3 * head_size, 1);
      const RopeParameters rope = {.theta = 1e6, .full_precision = full_precision};
      // The two products may be joined before they are rounded.
      ExpectNear(RunRope(*this, x, positions, 3, rope), RunRope(reference_, x, positions, 3, rope),
                 2 * RoundingError(dtype()), 1e-6);
    }
  }
}

TEST_P(RowOpsTest, RopeAtPositionZeroChangesNothing) {
  const HostMatrix x = Rounded(RandomMatrix(2, 64, 1), dtype());
  ExpectSameBits(RunRope(*this, x, {0, 0}, 2, {}), x);
}

TEST_P(RowOpsTest, EmbedGivesZerosForIdsOfOtherShards) {
  const HostMatrix table = RandomMatrix(4, 37, 1);
  for (const DType table_dtype : {DType::kF32, DType::kBf16}) {
    const DeviceMatrix device_table = Put(table, table_dtype), out = Space(6, 37);
    const DeviceArray<int32_t> ids = PutArray<int32_t>({9, 10, 13, 14, 11, 1 << 30});
    ops().Embed(ids.data(), device_table, /*first_id=*/10, out);
    HostMatrix expected(6, 37);
    for (int64_t c = 0; c < 37; ++c) {
      expected.at(1, c) = table.at(0, c), expected.at(2, c) = table.at(3, c), expected.at(4, c) = table.at(1, c);
    }
    ExpectSameBits(Get(out), Rounded(Rounded(expected, table_dtype), dtype()));
  }
}

TEST_P(RowOpsTest, GatherRowsCopiesInAnyOrderAndRepeats) {
  const HostMatrix x = Rounded(RandomMatrix(5, 19, 1), dtype());
  const std::vector<int32_t> rows = {4, 0, 4, 2};
  const DeviceMatrix device_x = Put(x), out = Space(4, 19);
  const DeviceArray<int32_t> device_rows = PutArray(rows);
  ops().GatherRows(device_x, device_rows.data(), out);
  ExpectSameBits(Get(out), SelectRows(x, rows));
}

INSTANTIATE_OPS_TEST(RowOpsTest);

}  // namespace
}  // namespace quicksilver
