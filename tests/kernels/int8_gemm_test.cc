#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/int8_rows.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

/// The 8-bit layers of the processor's operations, by activation type and threads.
class Int8GemmTest : public OpsTestBase, public ::testing::WithParamInterface<std::pair<DType, int32_t>> {
 protected:
  void SetUp() override {
    if (!HasInt8Products()) GTEST_SKIP() << "this processor does not add up products of bytes exactly";
    UseOps(MakeCpuOps(GetParam().first, {.threads = GetParam().second, .int8_layers = true}));
  }
  HostMatrix Multiply(const HostMatrix& x, const GemmWeight& weight) {
    const DeviceMatrix device_x = Put(x), result = Put(HostMatrix(x.rows, weight.out_features()), DType::kF32);
    ops().Gemm(device_x, weight, result);
    return Get(result);
  }
};

float AmaxOf(const HostMatrix& m, int64_t row) {
  float amax = 0.0f;
  for (int64_t c = 0; c < m.cols; ++c) amax = std::max(amax, std::abs(m.at(row, c)));
  return amax;
}

/// As QuantizeRows defines it, and back.
HostMatrix Requantized(const HostMatrix& m) {
  HostMatrix kept(m.rows, m.cols);
  for (int64_t r = 0; r < m.rows; ++r) {
    const float amax = AmaxOf(m, r), factor = 127.0f / amax;
    for (int64_t c = 0; c < m.cols; ++c) {
      kept.at(r, c) = static_cast<float>(std::nearbyint(double{m.at(r, c)} * factor) * (amax / 127.0));
    }
  }
  return kept;
}

double Dot(const HostMatrix& x, int64_t n, const HostMatrix& weight, int64_t o) {
  double sum = 0.0;
  for (int64_t i = 0; i < x.cols; ++i) sum += double{x.at(n, i)} * weight.at(o, i);
  return sum;
}

struct Shape {
  int64_t rows;
  int64_t in;
  int64_t out;
};
// Less than, exactly and more than a tile; odd sizes; several panels of columns and a rest.
constexpr Shape kShapes[] = {{1, 1, 1}, {3, 5, 7}, {8, 64, 64}, {9, 63, 65}, {40, 192, 1300}, {5, 6000, 700}};

TEST_P(Int8GemmTest, MultipliesRoundedRowsByRoundedOutputFeatures) {
  for (const auto& [rows, in, out] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", in, " by ", out));
    const HostMatrix x = Rounded(RandomMatrix(rows, in, 1), dtype()), weight = RandomMatrix(out, in, 2, 0.1f);
    const std::unique_ptr<GemmWeight> prepared = Prepare(weight);
    const HostMatrix result = Multiply(x, *prepared), coarse_x = Requantized(x), coarse_weight = Requantized(weight);
    for (int64_t n = 0; n < rows; ++n) {
      const double x_step = AmaxOf(x, n) / 127.0;
      for (int64_t o = 0; o < out; ++o) {
        // Sums are exact and each result is rounded three times. Without fused multiply-add (sanitizers) a number next
        // to the middle of two steps may go the other way, and its factor is at most the largest; two do in one sum.
        const double middle = 2.5 * x_step * AmaxOf(weight, o);
        const double expected = Dot(coarse_x, n, coarse_weight, o);
        ASSERT_NEAR(result.at(n, o), expected, 4e-7 * std::abs(expected) + middle) << n << ", " << o;
      }
    }
  }
}

TEST_P(Int8GemmTest, IsAsCloseToTheProductAsHalfAStepOfEveryNumberAllows) {
  for (const auto& [rows, in, out] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " x ", in, " by ", out));
    const HostMatrix x = Rounded(RandomMatrix(rows, in, 3), dtype()), weight = RandomMatrix(out, in, 4, 0.1f);
    const HostMatrix result = Multiply(x, *Prepare(weight));
    for (int64_t n = 0; n < rows; ++n) {
      const double x_half = AmaxOf(x, n) / 254.0;
      double x_sum = 0.0;
      for (int64_t i = 0; i < in; ++i) x_sum += std::abs(x.at(n, i));
      for (int64_t o = 0; o < out; ++o) {
        const double weight_half = AmaxOf(weight, o) / 254.0;
        double bound = 1e-6 + x_sum * weight_half + static_cast<double>(in) * x_half * weight_half;
        for (int64_t i = 0; i < in; ++i) bound += std::abs(weight.at(o, i)) * x_half;
        ASSERT_NEAR(result.at(n, o), Dot(x, n, weight, o), bound) << n << ", " << o;
      }
    }
  }
}

TEST_P(Int8GemmTest, TheLargestSumsAreExact) {
  // 127 times 127 throughout, beside rows and features of the other sign: 16 bits would not hold a pair of them.
  const int64_t in = 4096;
  HostMatrix x(2, in), weight(2, in);
  for (int64_t i = 0; i < in; ++i) {
    x.at(0, i) = weight.at(0, i) = 127.0f;
    x.at(1, i) = weight.at(1, i) = -127.0f;
  }
  const HostMatrix result = Multiply(x, *Prepare(weight));
  for (const auto& [n, o] : {std::pair{0, 0}, {0, 1}, {1, 0}, {1, 1}}) {
    EXPECT_EQ(result.at(n, o), (n == o ? 1.0f : -1.0f) * 127.0f * 127.0f * static_cast<float>(in));
  }
}

TEST_P(Int8GemmTest, TheHeadIsKeptAsItIs) {
  const HostMatrix x = Rounded(RandomMatrix(11, 96, 1), dtype()), weight = RandomMatrix(33, 96, 2, 0.1f);
  const ConstMatrix host(weight.values.data(), weight.rows, weight.cols, weight.cols, DType::kF32);
  const HostMatrix head = Multiply(x, **ops().PrepareWeight(host, WeightRole::kHead));
  UseOps(MakeCpuOps(dtype(), {.threads = GetParam().second}));
  ExpectSameBits(head, Multiply(x, *Prepare(weight)));
}

TEST_P(Int8GemmTest, ANanRowStaysNanAndSpoilsNoOther) {
  const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(70, 48, 1));
  const HostMatrix x = RandomMatrix(10, 48, 2);
  const HostMatrix expected = Multiply(x, *weight);
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    HostMatrix spoiled = x;
    spoiled.at(4, 17) = value;
    const HostMatrix result = Multiply(spoiled, *weight);
    for (int64_t n = 0; n < x.rows; ++n) {
      for (int64_t o = 0; o < 70; ++o) {
        if (n == 4) {
          ASSERT_TRUE(std::isnan(result.at(n, o)));
        } else {
          ASSERT_EQ(result.at(n, o), expected.at(n, o));
        }
      }
    }
  }
}

TEST_P(Int8GemmTest, TakesAQuarterOfTheMemoryOfFloats) {
  const HostMatrix weight = RandomMatrix(512, 1024, 1);
  EXPECT_LE(Prepare(weight)->bytes(), size_t{512} * (1024 + 8));
}

TEST_P(Int8GemmTest, RefusesMoreInputsThanASumCanTake) {
  const std::vector<float> row(66312);  // 255 * 127 * 66312 is above 2^31.
  const auto in = static_cast<int64_t>(row.size());
  EXPECT_TRUE(ops().PrepareWeight({row.data(), 1, in - 1, in - 1, DType::kF32}, WeightRole::kLayer).ok());
  const absl::Status status = ops().PrepareWeight({row.data(), 1, in, in, DType::kF32}, WeightRole::kLayer).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(std::string(status.message()).find("66312"), std::string::npos);
}

/// Row n through experts n % 6 and (n + 1) % 6 of six, which are always the same.
class Int8ExpertsTest : public Int8GemmTest {
 protected:
  static constexpr int64_t kHidden = 192, kMlp = 128;
  static constexpr int32_t kExperts = 6;

  std::unique_ptr<ExpertWeights> PrepareExperts() {
    auto weights = *ops().PrepareExperts({.count = kExperts, .hidden = kHidden, .mlp = kMlp});
    for (int32_t e = 0; e < kExperts; ++e) {
      const HostMatrix gate_up = RandomMatrix(2 * kMlp, kHidden, 10 + e, 0.07f);
      const HostMatrix down = RandomMatrix(kHidden, kMlp, 20 + e, 0.09f);
      EXPECT_TRUE(weights->Load(e, ExpertMatrix::kGateUp, HostView(gate_up)).ok());
      EXPECT_TRUE(weights->Load(e, ExpertMatrix::kDown, HostView(down)).ok());
    }
    return weights;
  }

  HostMatrix Mix(const HostMatrix& x, const ExpertWeights& weights, const std::vector<int32_t>& rows) {
    std::vector<int32_t> experts;
    for (const int32_t row : rows) experts.insert(experts.end(), {row % kExperts, (row + 1) % kExperts});
    const DeviceMatrix device_x = Put(SelectRows(x, rows)), out = Space(static_cast<int64_t>(rows.size()), kHidden);
    const DeviceArray<int32_t> device_experts = PutArray(experts);
    const DeviceArray<float> shares = PutArray(std::vector<float>(experts.size(), 0.5f));
    ops().ExpertMlp(device_x, weights, Activation::kSilu, device_experts.data(), shares.data(), 2, /*add=*/false, out);
    return Get(out);
  }

 private:
  static ConstMatrix HostView(const HostMatrix& m) { return {m.values.data(), m.rows, m.cols, m.cols, DType::kF32}; }
};

TEST_P(Int8ExpertsTest, KeepRowsApartAndStayCloseToTheFloats) {
  const HostMatrix x = Rounded(RandomMatrix(29, kHidden, 1), dtype());
  std::vector<int32_t> all(29);
  std::iota(all.begin(), all.end(), 0);
  HostMatrix coarse;
  {
    const std::unique_ptr<ExpertWeights> weights = PrepareExperts();
    coarse = Mix(x, *weights, all);
    for (const int32_t row : all) ExpectSameBits(Mix(x, *weights, {row}), SelectRows(coarse, {row}));
    const std::vector<int32_t> some = {28, 3, 4, 5, 10, 16, 22, 0};
    ExpectSameBits(Mix(x, *weights, some), SelectRows(coarse, some));
  }
  UseOps(MakeCpuOps(dtype(), {}));
  const HostMatrix exact = Mix(x, *PrepareExperts(), all);
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < exact.values.size(); ++i) {
    error += std::pow(double{coarse.values[i]} - exact.values[i], 2);
    size += std::pow(double{exact.values[i]}, 2);
  }
  // Rounding to a step of amax / 127 puts uniform numbers (amax = 1.7 root mean squares) off by 0.4 % of their root
  // mean square, and the products of gate and up (amax of some 5) by 1.1 %. With both weights that is 1.5 % in all.
  EXPECT_LT(std::sqrt(error / size), 0.025);
  EXPECT_GT(error, 0.0) << "these were not experts of 8 bits";
}

INSTANTIATE_TEST_SUITE_P(Every, Int8ExpertsTest,
                         ::testing::Values(std::pair{DType::kF32, 1}, std::pair{DType::kBf16, 2}),
                         [](const auto& param_info) {
                           return std::string(param_info.param.first == DType::kF32 ? "F32" : "Bf16");
                         });

INSTANTIATE_TEST_SUITE_P(Every, Int8GemmTest,
                         ::testing::Values(std::pair{DType::kF32, 1}, std::pair{DType::kBf16, 1},
                                           std::pair{DType::kF32, 2}),
                         [](const auto& param_info) {
                           return absl::StrCat(param_info.param.first == DType::kF32 ? "F32" : "Bf16", "Threads",
                                               param_info.param.second);
                         });

TEST(QuantizeRowsTest, GivesTheDefinedBytesAndScales) {
  const float x[] = {
      127.0f, -127.0f, 1.4f, -2.5f, 3.5f, 0.0f,    // Ties go to even.
      0.0f,   0.0f,    0.0f, 0.0f,  0.0f, 0.0f,    //
      1e-31f, 0.0f,    0.0f, 0.0f,  0.0f, -1e-31f  // Too small to be told from zero.
  };
  uint8_t values[18];
  float scales[3];
  QuantizeRows({x, 3, 6, 6, DType::kF32}, /*zero=*/128, values, scales);
  const int expected[] = {255, 1, 129, 126, 132, 128};
  for (int c = 0; c < 6; ++c) {
    EXPECT_EQ(values[c], expected[c]) << c;
    EXPECT_EQ(values[6 + c], 128);
    EXPECT_EQ(values[12 + c], 128);
  }
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(scales[1], 0.0f);
  EXPECT_EQ(scales[2], 0.0f);
  QuantizeRows({x, 1, 6, 6, DType::kF32}, /*zero=*/0, values, scales);
  EXPECT_EQ(static_cast<int8_t>(values[1]), -127);
}

// Where products of bytes are summed in pairs of 16 bits the answer must be no: see the variants in CMakeLists.txt.
TEST(HasInt8ProductsTest, IsWhatTheBuildExpectsOfTheseInstructions) {
  const char* const expected = std::getenv("QUICKSILVER_EXPECT_INT8");
  if (expected == nullptr) GTEST_SKIP() << "run by the variants with held down instruction sets";
  EXPECT_EQ(HasInt8Products(), std::string(expected) == "yes");
}

}  // namespace
}  // namespace quicksilver
