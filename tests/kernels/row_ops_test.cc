#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/rotate_case.h"

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
    if (IsSkipped() || HasFatalFailure()) return;
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

TEST_P(RowOpsTest, RmsNormRoundsBeforeTheGain) {
  // 1.4140625 * 1.00823 = 1.425700, below the midpoint 1.42578125; 1.4142136 * 1.00823 = 1.425853 is above it.
  const HostMatrix normed = RunRmsNorm(*this, {1, 2, {1.0f, 0.0f}}, {1, 2, {1.00823f, 1.0f}}, 0.0f);
  EXPECT_NEAR(normed.at(0, 0), dtype() == DType::kF32 ? 1.425853f : 1.421875f, 1e-6f);
}

TEST_P(RowOpsTest, RmsNormOfARowOfZerosIsZero) {
  ExpectNear(RunRmsNorm(*this, HostMatrix(2, 33), RandomMatrix(1, 33, 2), 1e-6f), HostMatrix(2, 33), 0.0, 0.0);
}

TEST_P(RowOpsTest, AddRmsNormRoundsTheSumOnceAndNormsWhatItStored) {
  for (const auto& [rows, cols] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", cols));
    const HostMatrix x = Rounded(RandomMatrix(rows, cols, 1), dtype()),
                     y = Rounded(RandomMatrix(rows, cols, 2), dtype()), gain = RandomMatrix(1, cols, 3);
    const DeviceMatrix device_x = Put(x), device_y = Put(y), out = Space(rows, cols);
    const DeviceArray<float> device_gain = PutArray(gain.values);
    ops().AddRmsNorm(device_y, device_gain.data(), 1e-6f, device_x, out);
    HostMatrix sum = x;
    for (size_t i = 0; i < x.values.size(); ++i) sum.values[i] += y.values[i];
    ExpectSameBits(Get(device_x), Rounded(sum, dtype()));
    ExpectSameBits(Get(out), RunRmsNorm(*this, Rounded(sum, dtype()), gain, 1e-6f));
  }
}

TEST_P(RowOpsTest, AGainInFloatIsMultipliedBeforeTheOneRounding) {
  // See above; now the product of the unrounded value rounds.
  const DeviceMatrix x = Put({1, 2, {1.0f, 0.0f}}), out = Space(1, 2);
  const DeviceArray<float> gain = PutArray<float>({1.00823f, 1.0f});
  ops().RmsNorm(x, {gain.data(), true}, 0.0f, out);
  EXPECT_NEAR(Get(out).at(0, 0), dtype() == DType::kF32 ? 1.425853f : 1.4296875f, 1e-6f);
  for (const auto& [rows, cols] : kShapes) {
    const HostMatrix m = RandomMatrix(rows, cols, 1), gains = RandomMatrix(1, cols, 2);
    const auto run = [&](OpsTestBase& test) {
      const DeviceMatrix device_m = test.Put(m);
      const DeviceArray<float> device_gain = test.PutArray(gains.values);
      test.ops().RmsNorm(device_m, {device_gain.data(), true}, 1e-6f, device_m);
      return test.Get(device_m);
    };
    ExpectNear(run(*this), run(reference_), 2 * RoundingError(dtype()) + 1e-6, 0.0);
  }
}

TEST_P(RowOpsTest, WithoutAGainANormMultipliesByOne) {
  for (const auto& [rows, cols] : kShapes) {
    const HostMatrix x = RandomMatrix(rows, cols, 1);
    const DeviceMatrix device_x = Put(x);
    ops().RmsNorm(device_x, nullptr, 1e-6f, device_x);
    ExpectSameBits(Get(device_x), RunRmsNorm(*this, x, {1, cols, std::vector<float>(cols, 1.0f)}, 1e-6f));
  }
}

TEST_P(RowOpsTest, AddNormedAddsTheRoundedNorm) {
  for (const bool in_float : {false, true}) {
    for (const auto& [rows, cols] : kShapes) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", cols, " gain in float ", in_float));
      const HostMatrix x = Rounded(RandomMatrix(rows, cols, 1), dtype()), y = RandomMatrix(rows, cols, 2);
      const DeviceArray<float> gain = PutArray(RandomMatrix(1, cols, 3).values);
      const DeviceMatrix device_x = Put(x), device_y = Put(y), normed = Space(rows, cols);
      ops().RmsNorm(device_y, {gain.data(), in_float}, 1e-6f, normed);
      ops().AddNormed(device_y, {gain.data(), in_float}, 1e-6f, device_x);
      HostMatrix expected = Get(normed);
      for (size_t i = 0; i < x.values.size(); ++i) expected.values[i] += x.values[i];
      ExpectSameBits(Get(device_x), Rounded(expected, dtype()));
    }
  }
}

TEST_P(RowOpsTest, ScaleMultipliesEveryElement) {
  const DeviceArray<float> factor = PutArray<float>({0.37f});
  for (const auto& [rows, cols] : kShapes) {
    HostMatrix x = Rounded(RandomMatrix(rows, cols, 1), dtype());
    const DeviceMatrix device_x = Put(x);
    ops().Scale(factor.data(), device_x);
    for (float& value : x.values) value *= 0.37f;
    ExpectSameBits(Get(device_x), Rounded(x, dtype()));
  }
}

TEST_P(RowOpsTest, AddRmsNormToLeavesRowsAloneThatAreNotChosen) {
  const HostMatrix x = Rounded(RandomMatrix(4, 70, 1), dtype()), y = RandomMatrix(4, 70, 2);
  const DeviceArray<int32_t> rows = PutArray<int32_t>({-1, 0, -2, 77});
  const DeviceMatrix device_x = Put(x), device_y = Put(y), sum = Put(x), out = Space(4, 70);
  ops().AddRmsNormTo(rows.data(), device_y, 1e-6f, device_x);
  ops().AddRmsNorm(device_y, nullptr, 1e-6f, sum, out);
  HostMatrix expected = Get(out);
  for (const int64_t n : {0, 2}) {
    for (int64_t c = 0; c < 70; ++c) expected.at(n, c) = x.at(n, c);
  }
  ExpectSameBits(Get(device_x), expected);
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

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh};

HostMatrix RunGatedMul(OpsTestBase& test, Activation activation, const HostMatrix& gate_up) {
  const DeviceMatrix in = test.Put(gate_up), out = test.Space(gate_up.rows, gate_up.cols / 2);
  test.ops().GatedMul(activation, in, out);
  return test.Get(out);
}

TEST_P(RowOpsTest, GatedMulAgreesWithTheReference) {
  for (const auto& [rows, cols] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", cols));
    const HostMatrix gate_up = RandomMatrix(rows, 2 * cols, 1, 3.0f);
    // e^x may differ in its last two bits; 1 + tanh loses some where it is nearly 0.
    for (const Activation activation : kActivations) {
      ExpectNear(RunGatedMul(*this, activation, gate_up), RunGatedMul(reference_, activation, gate_up),
                 2 * RoundingError(dtype()) + 5e-7, activation == Activation::kSilu ? 0.0 : 2e-6);
    }
  }
}

TEST_P(RowOpsTest, GatedMulStaysFiniteForLargeGates) {
  const HostMatrix gate_up(1, 8, {-200.0f, -88.0f, 88.0f, 200.0f, 1.0f, 2.0f, 3.0f, 0.5f});
  // Both give 0 for -200 and 200 for 200, to any tolerance.
  for (const Activation activation : kActivations) {
    ExpectNear(RunGatedMul(*this, activation, gate_up), HostMatrix(1, 4, {0.0f, 0.0f, 264.0f, 100.0f}), 0.0, 1e-30);
  }
}

std::vector<int32_t> Ascending(int64_t count) {
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

HostMatrix Columns(const HostMatrix& m, int64_t first, int64_t cols) {
  HostMatrix part(m.rows, cols);
  for (int64_t n = 0; n < m.rows; ++n) {
    for (int64_t c = 0; c < cols; ++c) part.at(n, c) = m.at(n, first + c);
  }
  return part;
}

TEST_P(RowOpsTest, RotationAgreesWithTheReferenceAtAnyPosition) {
  const std::vector<int32_t> positions = {0, 1, 7, 4095, 2, 32000}, slots = Ascending(6);
  for (const bool full_precision : {false, true}) {
    for (const int32_t head_size : {2, 6, 32, 80, 128, 256}) {
      SCOPED_TRACE(absl::StrCat("hd=", head_size, " full precision ", full_precision));
      const RotateCase rotate = {
          .heads = 3, .head_size = head_size, .rope = {.theta = 1e6, .full_precision = full_precision}};
      const HostMatrix x = RandomMatrix(6, rotate.cols(), 1);
      const Rotated actual = RunRotate(*this, rotate, x, positions, slots);
      const Rotated expected = RunRotate(reference_, rotate, x, positions, slots);
      // The two products may be joined before they are rounded.
      ExpectNear(actual.qkv, expected.qkv, 2 * RoundingError(dtype()), 1e-6);
      ExpectNear(actual.keys, expected.keys, 2 * RoundingError(dtype()), 1e-6);
    }
  }
}

TEST_P(RowOpsTest, APartialRotationTurnsTheFirstElementsOfAHeadAsAHeadOfThatSize) {
  const std::vector<int32_t> positions = {0, 5, 4095}, slots = Ascending(3);
  for (const auto& [head_size, rotary_size] : {std::pair{128, 64}, {24, 12}, {200, 4}, {512, 256}}) {
    SCOPED_TRACE(absl::StrCat("hd=", head_size, " rotated ", rotary_size));
    const RotateCase partial = {.heads = 2, .head_size = head_size, .rope = {.theta = 1e4, .rotary_size = rotary_size}};
    const HostMatrix x = Rounded(RandomMatrix(3, partial.cols(), 1), dtype());
    const Rotated actual = RunRotate(*this, partial, x, positions, slots);
    HostMatrix expected = x;
    for (int32_t head = 0; head < 3; ++head) {
      const RotateCase whole = {.head_size = rotary_size, .rope = {.theta = 1e4}};
      HostMatrix part(3, whole.cols());
      for (int64_t n = 0; n < 3; ++n) {
        for (int32_t c = 0; c < rotary_size; ++c) part.at(n, c) = x.at(n, head * head_size + c);
      }
      const HostMatrix turned = RunRotate(*this, whole, part, positions, slots).qkv;
      for (int64_t n = 0; n < 3; ++n) {
        for (int32_t c = 0; c < rotary_size; ++c) expected.at(n, head * head_size + c) = turned.at(n, c);
      }
    }
    ExpectSameBits(actual.qkv, expected);
    ExpectSameBits(SelectRows(actual.keys, slots), Columns(expected, 2 * head_size, head_size));
  }
}

TEST_P(RowOpsTest, AProportionalRotationKeepsThePairsAndFrequenciesOfTheWholeHead) {
  const std::vector<int32_t> positions = {0, 5, 4095}, slots = Ascending(3);
  for (const auto& [head_size, rotary_size] : {std::pair{512, 128}, {24, 8}, {64, 64}}) {
    SCOPED_TRACE(absl::StrCat("hd=", head_size, " rotated ", rotary_size));
    RotateCase rotate = {.heads = 2, .head_size = head_size, .rope = {.theta = 1e6}};
    const HostMatrix x = Rounded(RandomMatrix(3, rotate.cols(), 1), dtype());
    const HostMatrix whole = RunRotate(*this, rotate, x, positions, slots).qkv;
    rotate.rope.rotary_size = rotary_size;
    rotate.rope.proportional = true;
    HostMatrix expected = x;
    for (int64_t n = 0; n < 3; ++n) {
      for (int32_t c = 0; c < 3 * head_size; ++c) {
        if (c % (head_size / 2) < rotary_size / 2) expected.at(n, c) = whole.at(n, c);
      }
    }
    ExpectSameBits(RunRotate(*this, rotate, x, positions, slots).qkv, expected);
  }
}

// The gain and its sum are of the whole head, wherever its elements are held.
TEST_P(RowOpsTest, HeadsThatAreRotatedInPartAreNormedWhole) {
  RotateCase plain = {.heads = 2, .kv_heads = 1, .head_size = 48, .rope = {.rotary_size = 16}};
  RotateCase normed = plain;
  normed.q_gain = RandomMatrix(1, 48, 2).values;
  normed.k_gain = RandomMatrix(1, 48, 3).values;
  const HostMatrix x = RandomMatrix(4, plain.cols(), 1);
  const std::vector<int32_t> still(4, 0), positions = {3, 0, 9, 100}, slots = Ascending(4);
  const HostMatrix at_zero = RunRotate(*this, normed, x, still, slots).qkv;
  ExpectNear(at_zero, RunRotate(reference_, normed, x, still, slots).qkv, 4 * RoundingError(dtype()) + 1e-6, 0.0);
  ExpectSameBits(RunRotate(*this, normed, x, positions, slots).qkv,
                 RunRotate(*this, plain, at_zero, positions, slots).qkv);
}

TEST_P(RowOpsTest, RotationAtPositionZeroChangesNothing) {
  const RotateCase rotate = {.heads = 2, .head_size = 64};
  const HostMatrix x = Rounded(RandomMatrix(2, rotate.cols(), 1), dtype());
  ExpectSameBits(RunRotate(*this, rotate, x, {0, 0}, {0, 1}).qkv, x);
}

TEST_P(RowOpsTest, HeadsAreNormedOneByOneBeforeTheyAreRotated) {
  const RotateCase plain = {.heads = 3, .kv_heads = 2, .head_size = 24};
  RotateCase normed = plain;
  normed.q_gain = RandomMatrix(1, 24, 2).values;
  normed.k_gain = RandomMatrix(1, 24, 3).values;
  const HostMatrix x = RandomMatrix(5, plain.cols(), 1);
  HostMatrix expected = Rounded(x, dtype());
  for (int32_t head = 0; head < 5; ++head) {
    const HostMatrix gain(1, 24, head < 3 ? normed.q_gain : normed.k_gain);
    const HostMatrix run = RunRmsNorm(*this, Columns(x, head * 24, 24), gain, 1e-6f);
    for (int64_t n = 0; n < 5; ++n) {
      for (int64_t c = 0; c < 24; ++c) expected.at(n, head * 24 + c) = run.at(n, c);
    }
  }
  const std::vector<int32_t> still(5, 0), positions = {3, 0, 9, 100, 1}, slots = Ascending(5);
  // Sums are taken in another order, and a value may then round the other way.
  ExpectNear(RunRotate(*this, normed, x, still, slots).qkv, expected, 4 * RoundingError(dtype()) + 1e-6, 0.0);
  const HostMatrix at_zero = RunRotate(*this, normed, x, still, slots).qkv;
  ExpectSameBits(RunRotate(*this, normed, x, positions, slots).qkv,
                 RunRotate(*this, plain, at_zero, positions, slots).qkv);
}

TEST_P(RowOpsTest, ValuesCanBeNormedWithoutAGainBeforeTheyAreStored) {
  for (const bool float_gain : {false, true}) {
    RotateCase rotate = {.heads = 2, .kv_heads = 2, .head_size = 24};
    rotate.q_gain = rotate.k_gain = RandomMatrix(1, 24, 2).values;
    rotate.float_gain = float_gain;
    const HostMatrix x = RandomMatrix(3, rotate.cols(), 1);
    const std::vector<int32_t> positions = {3, 0, 9}, slots = Ascending(3);
    const Rotated plain = RunRotate(*this, rotate, x, positions, slots);
    rotate.norm_values = true;
    const Rotated normed = RunRotate(*this, rotate, x, positions, slots);
    ExpectSameBits(normed.keys, plain.keys);
    ExpectSameBits(Columns(normed.qkv, 0, 96), Columns(plain.qkv, 0, 96));
    ExpectSameBits(SelectRows(normed.values, slots), Columns(normed.qkv, 96, 48));
    const Rotated expected = RunRotate(reference_, rotate, x, positions, slots);
    // Sums are taken in another order, and a value may then round the other way, thrice.
    ExpectNear(normed.qkv, expected.qkv, 6 * RoundingError(dtype()) + 1e-6, 2 * RoundingError(dtype()));
  }
}

TEST_P(RowOpsTest, HeadGainsInFloatRoundOnce) {
  RotateCase rotate = {.head_size = 2, .q_gain = {1.00823f, 1.0f}, .epsilon = 0.0f};
  rotate.k_gain = rotate.q_gain;
  for (const bool float_gain : {false, true}) {
    rotate.float_gain = float_gain;
    const HostMatrix normed = RunRotate(*this, rotate, {1, 6, {1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0.0f}}, {0}, {0}).qkv;
    const float rounded = float_gain ? 1.4296875f : 1.421875f;
    EXPECT_NEAR(normed.at(0, 0), dtype() == DType::kF32 ? 1.425853f : rounded, 1e-6f);
    EXPECT_NEAR(normed.at(0, 2), dtype() == DType::kF32 ? 1.425853f : rounded, 1e-6f);
  }
}

TEST_P(RowOpsTest, KeysAndValuesGoToTheirSlotsAndPaddingRowsNowhere) {
  const RotateCase rotate = {.heads = 2, .kv_heads = 2, .head_size = 16};
  const HostMatrix x = Rounded(RandomMatrix(4, rotate.cols(), 1), dtype());
  const std::vector<int32_t> slots = {4, -1, 0, 2};
  const Rotated rotated = RunRotate(*this, rotate, x, {5, 0, 6, 7}, slots);
  HostMatrix keys(5, 32), values(5, 32);
  for (int64_t n = 0; n < 4; ++n) {
    if (slots[n] < 0) continue;
    for (int64_t c = 0; c < 32; ++c) {
      keys.at(slots[n], c) = rotated.qkv.at(n, 32 + c);
      values.at(slots[n], c) = x.at(n, 64 + c);
    }
  }
  ExpectSameBits(rotated.keys, keys);
  ExpectSameBits(rotated.values, values);
  ExpectSameBits(Columns(rotated.qkv, 64, 32), Columns(x, 64, 32));
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

TEST_P(RowOpsTest, ScatterRowsLeavesOtherRowsAlone) {
  const HostMatrix x = Rounded(RandomMatrix(3, 19, 1), dtype()), before = Rounded(RandomMatrix(5, 19, 2), dtype());
  const DeviceMatrix device_x = Put(x), out = Put(before);
  const DeviceArray<int32_t> rows = PutArray<int32_t>({4, -1, 0});
  ops().ScatterRows(device_x, rows.data(), out);
  HostMatrix expected = before;
  for (int64_t c = 0; c < 19; ++c) expected.at(4, c) = x.at(0, c), expected.at(0, c) = x.at(2, c);
  ExpectSameBits(Get(out), expected);
}

INSTANTIATE_OPS_TEST(RowOpsTest);

}  // namespace
}  // namespace quicksilver
