#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

/// The experts of a layer, on the host: matrices [2 Im, H] and [H, Im] of each.
struct Experts {
  int64_t hidden = 0;
  int64_t mlp = 0;
  std::vector<HostMatrix> gate_up;
  std::vector<HostMatrix> down;
};

Experts RandomExperts(int32_t count, int64_t hidden, int64_t mlp, uint32_t seed) {
  Experts experts = {.hidden = hidden, .mlp = mlp};
  for (uint32_t e = 0; e < static_cast<uint32_t>(count); ++e) {
    const float in = 1.0f / std::sqrt(static_cast<float>(hidden)), out = 1.0f / std::sqrt(static_cast<float>(mlp));
    experts.gate_up.push_back(RandomMatrix(2 * mlp, hidden, seed + 2 * e, in));
    experts.down.push_back(RandomMatrix(hidden, mlp, seed + 2 * e + 1, out));
  }
  return experts;
}

/// Which experts each row goes to.
struct Choices {
  int32_t k = 0;
  std::vector<int32_t> experts;  // [N, k]
  std::vector<float> weights;    // [N, k]
};

Choices RandomChoices(int64_t rows, int32_t experts, int32_t k, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), 0);
  Choices choices = {.k = k};
  for (int64_t n = 0; n < rows; ++n) {
    std::shuffle(all.begin(), all.end(), generator);
    for (int32_t j = 0; j < k; ++j) {
      choices.experts.push_back(all[j]);
      choices.weights.push_back(0.1f + 0.1f * static_cast<float>(generator() % 8));
    }
  }
  return choices;
}

Choices SelectChoices(const Choices& choices, const std::vector<int32_t>& rows) {
  Choices some = {.k = choices.k};
  for (const int32_t row : rows) {
    some.experts.insert(some.experts.end(), choices.experts.begin() + row * choices.k,
                        choices.experts.begin() + (row + 1) * choices.k);
    some.weights.insert(some.weights.end(), choices.weights.begin() + row * choices.k,
                        choices.weights.begin() + (row + 1) * choices.k);
  }
  return some;
}

double Activate(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

/// The definition, with the roundings it names and sums in double. x and `experts` are rounded.
HostMatrix Mixed(const HostMatrix& x, const Experts& experts, Activation activation, const Choices& choices,
                 DType dtype) {
  const auto rounded = [dtype](double value) {
    return dtype == DType::kF32 ? static_cast<float>(value) : RoundToBf16(static_cast<float>(value));
  };
  const auto product = [&](const HostMatrix& matrix, int64_t row, const float* values) {
    double sum = 0.0;
    for (int64_t i = 0; i < matrix.cols; ++i) sum += double{matrix.at(row, i)} * values[i];
    return rounded(sum);
  };
  HostMatrix out(x.rows, x.cols);
  for (int64_t n = 0; n < x.rows; ++n) {
    std::vector<double> sums(static_cast<size_t>(x.cols));
    for (int64_t j = n * choices.k; j < (n + 1) * choices.k; ++j) {
      if (choices.experts[j] < 0) continue;
      const HostMatrix &gate_up = experts.gate_up[choices.experts[j]], &down = experts.down[choices.experts[j]];
      std::vector<float> inner;
      for (int64_t i = 0; i < experts.mlp; ++i) {
        const double gate = product(gate_up, i, x.row(n)), up = product(gate_up, experts.mlp + i, x.row(n));
        inner.push_back(rounded(Activate(activation, gate) * up));
      }
      for (int64_t h = 0; h < x.cols; ++h) sums[h] += double{choices.weights[j]} * product(down, h, inner.data());
    }
    for (int64_t h = 0; h < x.cols; ++h) out.at(n, h) = rounded(sums[h]);
  }
  return out;
}

class MoeTest : public OpsTest {
 protected:
  std::unique_ptr<ExpertWeights> PrepareExperts(const ExpertShape& shape) {
    absl::StatusOr<std::unique_ptr<ExpertWeights>> weights = ops().PrepareExperts(shape);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  }

  void Load(ExpertWeights& weights, int32_t expert, ExpertMatrix which, const HostMatrix& m) {
    const absl::Status status = weights.Load(expert, which, {m.values.data(), m.rows, m.cols, m.cols, DType::kF32});
    EXPECT_TRUE(status.ok()) << status;
  }

  /// Experts [first, first + count).
  std::unique_ptr<ExpertWeights> PrepareExperts(const Experts& experts, int32_t first, int32_t count) {
    std::unique_ptr<ExpertWeights> weights =
        PrepareExperts({.first = first, .count = count, .hidden = experts.hidden, .mlp = experts.mlp});
    for (int32_t e = first; e < first + count; ++e) {
      Load(*weights, e, ExpertMatrix::kGateUp, experts.gate_up[e]);
      Load(*weights, e, ExpertMatrix::kDown, experts.down[e]);
    }
    return weights;
  }
  std::unique_ptr<ExpertWeights> PrepareExperts(const Experts& experts) {
    return PrepareExperts(experts, 0, static_cast<int32_t>(experts.down.size()));
  }

  HostMatrix Mix(const HostMatrix& x, const ExpertWeights& weights, const Choices& choices,
                 Activation activation = Activation::kSilu) {
    const DeviceMatrix device_x = Put(x), out = Put(HostMatrix(x.rows, x.cols, std::vector<float>(x.values.size(), 7)));
    const DeviceArray<int32_t> experts = PutArray(choices.experts);
    const DeviceArray<float> expert_weights = PutArray(choices.weights);
    ops().ExpertMlp(device_x, weights, activation, experts.data(), expert_weights.data(), choices.k, /*add=*/false,
                    out);
    return Get(out);
  }

  Experts Rounded(Experts experts) {
    for (HostMatrix& m : experts.gate_up) m = quicksilver::Rounded(m, dtype());
    for (HostMatrix& m : experts.down) m = quicksilver::Rounded(m, dtype());
    return experts;
  }
};

TEST_P(MoeTest, TwoSmallExpertsGiveTheNumbersWorkedOutByHand) {
  const Experts experts = {.hidden = 2,
                           .mlp = 1,
                           .gate_up = {{2, 2, {1.0f, 0.0f, 0.0f, 2.0f}}, {2, 2, {0.0f, 1.0f, 1.0f, 1.0f}}},
                           .down = {{2, 1, {1.0f, -1.0f}}, {2, 1, {0.0f, 0.5f}}}};
  const std::unique_ptr<ExpertWeights> weights = PrepareExperts(experts);
  // Expert 0: silu(1) * 4 = 2.924234. Expert 1: silu(2) * 3 = 5.284782.
  const Choices choices = {.k = 2, .experts = {1, 0}, .weights = {0.5f, 2.0f}};
  const HostMatrix out = Mix({1, 2, {1.0f, 2.0f}}, *weights, choices);
  ExpectNear(out, {1, 2, {2.0f * 2.924234f, 0.5f * 0.5f * 5.284782f - 2.0f * 2.924234f}}, 3 * RoundingError(dtype()),
             1e-6);
  // gelu(1) = 0.841192, gelu(2) = 1.954598.
  const HostMatrix gelu = Mix({1, 2, {1.0f, 2.0f}}, *weights, choices, Activation::kGeluTanh);
  ExpectNear(gelu, {1, 2, {2.0f * 4.0f * 0.841192f, 0.25f * 3.0f * 1.954598f - 8.0f * 0.841192f}},
             3 * RoundingError(dtype()), 1e-5);
}

struct Shape {
  int64_t rows;
  int32_t experts;
  int32_t k;
  int64_t hidden;
  int64_t mlp;
};
// No rows; one row; fewer rows than experts and more; odd sizes; whole tiles; a long sum.
constexpr Shape kShapes[] = {{0, 4, 2, 8, 8},     {1, 1, 1, 1, 1},    {3, 16, 4, 64, 32},  {33, 5, 3, 63, 17},
                             {40, 2, 2, 128, 64}, {7, 8, 8, 24, 130}, {19, 32, 8, 96, 48}, {2, 4, 2, 1024, 256}};

TEST_P(MoeTest, AgreesWithTheDefinition) {
  for (const auto& [rows, count, k, hidden, mlp] : kShapes) {
    SCOPED_TRACE(absl::StrCat(rows, " rows, ", k, " of ", count, ", ", hidden, " x ", mlp));
    const Experts experts = RandomExperts(count, hidden, mlp, 5);
    const HostMatrix x = quicksilver::Rounded(RandomMatrix(rows, hidden, 1), dtype());
    const Choices choices = RandomChoices(rows, count, k, 2);
    const std::unique_ptr<ExpertWeights> weights = PrepareExperts(experts);
    EXPECT_GE(weights->bytes(), static_cast<size_t>(count * 3 * hidden * mlp) * ElementBytes(dtype()));
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      // Values in between, of size 1, may round the other way.
      ExpectNear(Mix(x, *weights, choices, activation), Mixed(x, Rounded(experts), activation, choices, dtype()),
                 2 * RoundingError(dtype()), dtype() == DType::kF32 ? 2e-5 : 0.02);
    }
  }
}

TEST_P(MoeTest, ManyRowsAreAllRun) {
  const Experts experts = Rounded(RandomExperts(3, 16, 8, 5));
  const HostMatrix x = quicksilver::Rounded(RandomMatrix(2100, 16, 1), dtype());
  const Choices choices = RandomChoices(x.rows, 3, 2, 2);
  ExpectNear(Mix(x, *PrepareExperts(experts), choices), Mixed(x, experts, Activation::kSilu, choices, dtype()),
             2 * RoundingError(dtype()), dtype() == DType::kF32 ? 2e-5 : 0.02);
}

TEST_P(MoeTest, ExpertsOutsideTheShardCountZero) {
  const Experts experts = Rounded(RandomExperts(6, 32, 24, 5));
  const HostMatrix x = quicksilver::Rounded(RandomMatrix(9, 32, 1), dtype());
  const Choices choices = RandomChoices(9, 6, 3, 2);
  for (const auto& [first, count] : {std::pair{0, 2}, {2, 3}, {5, 1}, {3, 0}}) {
    SCOPED_TRACE(absl::StrCat("experts ", first, " and following ", count));
    Choices held = choices;
    for (int32_t& e : held.experts) e = e >= first && e < first + count ? e : -1;
    const HostMatrix part = Mix(x, *PrepareExperts(experts, first, count), choices);
    ExpectNear(part, Mixed(x, experts, Activation::kSilu, held, dtype()), 2 * RoundingError(dtype()),
               dtype() == DType::kF32 ? 1e-5 : 0.02);
    ExpectSameBits(part, Mix(x, *PrepareExperts(experts), held));
  }
}

TEST_P(MoeTest, SharesOfTheColumnsSumToTheWhole) {
  const Experts experts = RandomExperts(4, 32, 24, 5);
  const HostMatrix x = quicksilver::Rounded(RandomMatrix(9, 32, 1), dtype());
  const Choices choices = RandomChoices(9, 4, 2, 2);
  HostMatrix sum(9, 32);
  for (const int64_t first : {0, 8, 16}) {
    Experts share = {.hidden = 32, .mlp = 8};
    for (size_t e = 0; e < experts.down.size(); ++e) {
      HostMatrix gate_up(16, 32), down(32, 8);
      for (int64_t i = 0; i < 8; ++i) {
        for (int64_t h = 0; h < 32; ++h) {
          gate_up.at(i, h) = experts.gate_up[e].at(first + i, h);
          gate_up.at(8 + i, h) = experts.gate_up[e].at(24 + first + i, h);
          down.at(h, i) = experts.down[e].at(h, first + i);
        }
      }
      share.gate_up.push_back(std::move(gate_up));
      share.down.push_back(std::move(down));
    }
    const HostMatrix part = Mix(x, *PrepareExperts(share), choices);
    for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += part.values[i];
  }
  ExpectNear(sum, Mixed(x, Rounded(experts), Activation::kSilu, choices, dtype()), 4 * RoundingError(dtype()),
             dtype() == DType::kF32 ? 1e-5 : 0.04);
}

TEST_P(MoeTest, RowsWithoutExpertsAndExpertsThatWereNeverLoadedGiveZeros) {
  const Experts experts = RandomExperts(2, 32, 24, 5);
  const std::unique_ptr<ExpertWeights> weights = PrepareExperts({.first = 0, .count = 4, .hidden = 32, .mlp = 24});
  Load(*weights, 1, ExpertMatrix::kGateUp, experts.gate_up[1]);
  Load(*weights, 1, ExpertMatrix::kDown, experts.down[1]);
  const HostMatrix x = RandomMatrix(3, 32, 1);
  const Choices choices = {.k = 2, .experts = {-1, -1, 3, 0, 3, 1}, .weights = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}};
  const HostMatrix out = Mix(x, *weights, choices);
  ExpectSameBits(SelectRows(out, {0, 1}), HostMatrix(2, 32));
  ExpectSameBits(SelectRows(out, {2}), Mix(SelectRows(x, {2}), *weights, {.k = 1, .experts = {1}, .weights = {1.0f}}));
}

TEST_P(MoeTest, AddsTheRoundedSumToWhatIsThere) {
  const Experts experts = RandomExperts(4, 40, 24, 5);
  const std::unique_ptr<ExpertWeights> weights = PrepareExperts(experts);
  const HostMatrix x = RandomMatrix(5, 40, 1), before = quicksilver::Rounded(RandomMatrix(5, 40, 3), dtype());
  const Choices choices = RandomChoices(5, 4, 2, 2);
  const DeviceMatrix device_x = Put(x), out = Put(before);
  const DeviceArray<int32_t> device_experts = PutArray(choices.experts);
  const DeviceArray<float> expert_weights = PutArray(choices.weights);
  ops().ExpertMlp(device_x, *weights, Activation::kSilu, device_experts.data(), expert_weights.data(), 2, /*add=*/true,
                  out);
  HostMatrix expected = Mix(x, *weights, choices);
  for (size_t i = 0; i < expected.values.size(); ++i) expected.values[i] += before.values[i];
  ExpectSameBits(Get(out), quicksilver::Rounded(expected, dtype()));
}

TEST_P(MoeTest, ReadsMatricesOfEitherTypeWithAStride) {
  const Experts experts = RandomExperts(1, 20, 12, 5);
  const HostMatrix x = RandomMatrix(3, 20, 1);
  const Choices choices = {.k = 1, .experts = {0, 0, 0}, .weights = {1.0f, 1.0f, 1.0f}};
  Experts narrow = experts;
  narrow.gate_up[0] = quicksilver::Rounded(narrow.gate_up[0], DType::kBf16);
  const std::unique_ptr<ExpertWeights> dense = PrepareExperts(narrow);
  const std::unique_ptr<ExpertWeights> strided = PrepareExperts({.first = 0, .count = 1, .hidden = 20, .mlp = 12});
  std::vector<uint16_t> wide_gate_up;
  for (int64_t r = 0; r < 24; ++r) {
    for (int64_t c = 0; c < 23; ++c) wide_gate_up.push_back(FloatToBf16(c < 20 ? experts.gate_up[0].at(r, c) : 9.0f));
  }
  std::vector<float> wide_down;
  for (int64_t r = 0; r < 20; ++r) {
    for (int64_t c = 0; c < 15; ++c) wide_down.push_back(c < 12 ? experts.down[0].at(r, c) : 9.0f);
  }
  ASSERT_TRUE(strided->Load(0, ExpertMatrix::kGateUp, {wide_gate_up.data(), 24, 20, 23, DType::kBf16}).ok());
  ASSERT_TRUE(strided->Load(0, ExpertMatrix::kDown, {wide_down.data(), 20, 12, 15, DType::kF32}).ok());
  ExpectSameBits(Mix(x, *strided, choices), Mix(x, *dense, choices));
}

TEST_P(MoeTest, TheBitsOfARowDependOnItAlone) {
  for (const auto& [rows, count, k, hidden, mlp] : {Shape{41, 8, 3, 96, 56}, {12, 3, 2, 33, 9}, {23, 4, 4, 512, 128}}) {
    SCOPED_TRACE(absl::StrCat(rows, " rows, ", k, " of ", count, ", ", hidden, " x ", mlp));
    const std::unique_ptr<ExpertWeights> weights = PrepareExperts(RandomExperts(count, hidden, mlp, 5));
    const HostMatrix x = RandomMatrix(rows, hidden, 1);
    Choices choices = RandomChoices(rows, count, k, 2);
    for (int64_t n = 0; n < rows / 2; ++n) {  // One expert has many rows.
      int32_t* const first = choices.experts.data() + n * k;
      std::iter_swap(first, std::find(first, first + k, 0) == first + k ? first : std::find(first, first + k, 0));
      *first = 0;
    }
    const HostMatrix together = Mix(x, *weights, choices);
    std::mt19937 generator(11);
    std::vector<int32_t> order(static_cast<size_t>(rows));
    std::iota(order.begin(), order.end(), 0);
    for (int trial = 0; trial < 12; ++trial) {
      const size_t taken = trial < 4 ? 1 : 1 + generator() % order.size();
      const std::vector<int32_t> some(order.begin(), order.begin() + static_cast<ptrdiff_t>(taken));
      ExpectSameBits(Mix(SelectRows(x, some), *weights, SelectChoices(choices, some)), SelectRows(together, some));
      std::shuffle(order.begin(), order.end(), generator);
    }
  }
}

TEST_P(MoeTest, ANanRowSpoilsNoOther) {
  const std::unique_ptr<ExpertWeights> weights = PrepareExperts(RandomExperts(4, 48, 16, 5));
  const HostMatrix x = RandomMatrix(10, 48, 1);
  const Choices choices = RandomChoices(10, 4, 2, 2);
  HostMatrix spoiled = x;
  for (int64_t h = 0; h < 48; ++h) spoiled.at(4, h) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<int32_t> others = {0, 1, 2, 3, 5, 6, 7, 8, 9};
  ExpectSameBits(SelectRows(Mix(spoiled, *weights, choices), others), SelectRows(Mix(x, *weights, choices), others));
}

// What a recorded step needs: which experts run is decided anew by every launch.
TEST_P(MoeTest, ARecordedStepFollowsTheRoutingOfEachLaunch) {
  const std::unique_ptr<ExpertWeights> weights = PrepareExperts(RandomExperts(8, 32, 16, 5));
  const HostMatrix x = RandomMatrix(6, 32, 1);
  const DeviceMatrix device_x = Put(x), out = Space(6, 32);
  const DeviceArray<int32_t> experts = PutArray(RandomChoices(6, 8, 2, 1).experts);
  const DeviceArray<float> expert_weights = PutArray(RandomChoices(6, 8, 2, 1).weights);
  const auto enqueue = [&] {
    ops().ExpertMlp(device_x, *weights, Activation::kSilu, experts.data(), expert_weights.data(), 2, false, out);
  };
  ops().Rehearse(enqueue);
  absl::StatusOr<std::unique_ptr<Program>> program = ops().Record(enqueue, nullptr);
  ASSERT_TRUE(program.ok()) << program.status();
  for (const uint32_t seed : {2u, 3u}) {
    Choices choices = RandomChoices(6, 8, 2, seed);
    if (seed == 3) choices.experts = {5, 6, 5, 6, 6, 5, 5, 6, 6, 5, 5, 6};
    ops().Upload(choices.experts.data(), experts.data(), choices.experts.size() * sizeof(int32_t));
    ops().Upload(choices.weights.data(), expert_weights.data(), choices.weights.size() * sizeof(float));
    (*program)->Launch();
    const HostMatrix launched = Get(out);
    ExpectSameBits(launched, Mix(x, *weights, choices));
  }
}

INSTANTIATE_OPS_TEST(MoeTest);

}  // namespace
}  // namespace quicksilver
