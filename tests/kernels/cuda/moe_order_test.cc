#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/ops_fixture.h"
#include "tests/kernels/routing_case.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

constexpr int64_t kHidden = 72;
constexpr int64_t kMlp = 40;
// Rows of each expert: one for every tile, and more than the largest holds.
constexpr int32_t kRowsOf[] = {5, 14, 29, 62, 101, 140};
constexpr int32_t kExperts = static_cast<int32_t>(std::size(kRowsOf));

/// Experts on a device that the CUDA twin makes up.
class MoeOrderTest : public OpsTestBase, public ::testing::WithParamInterface<DType> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Ops>> ops = MakeCudaOps({.activation = GetParam()});
    ASSERT_TRUE(ops.ok()) << ops.status();
    UseOps(*std::move(ops));
    absl::StatusOr<std::unique_ptr<ExpertWeights>> weights =
        this->ops().PrepareExperts({.first = 0, .count = kExperts, .hidden = kHidden, .mlp = kMlp});
    ASSERT_TRUE(weights.ok()) << weights.status();
    weights_ = *std::move(weights);
    for (uint32_t e = 0; e < kExperts; ++e) {
      const HostMatrix gate_up = RandomMatrix(2 * kMlp, kHidden, e, 0.1f), down = RandomMatrix(kHidden, kMlp, 9 + e);
      ASSERT_TRUE(weights_
                      ->Load(static_cast<int32_t>(e), ExpertMatrix::kGateUp,
                             {gate_up.values.data(), gate_up.rows, gate_up.cols, gate_up.cols, DType::kF32})
                      .ok());
      ASSERT_TRUE(weights_
                      ->Load(static_cast<int32_t>(e), ExpertMatrix::kDown,
                             {down.values.data(), down.rows, down.cols, down.cols, DType::kF32})
                      .ok());
    }
  }
  void TearDown() override { cuda_twin::TwinDevice().Reset(); }
  void TestBody() override {}

  /// Every row goes to one expert.
  HostMatrix Mix(const HostMatrix& x, const std::vector<int32_t>& experts) {
    const DeviceMatrix device_x = Put(x), out = Space(x.rows, x.cols);
    const DeviceArray<int32_t> device_experts = PutArray(experts);
    const DeviceArray<float> weights = PutArray(std::vector<float>(experts.size(), 0.7f));
    ops().ExpertMlp(device_x, *weights_, Activation::kSilu, device_experts.data(), weights.data(), 1, false, out);
    return Get(out);
  }

  /// Rows of all experts, dealt out in turn.
  std::vector<int32_t> Dealt() const {
    std::vector<int32_t> experts;
    for (int32_t round = 0; round < 140; ++round) {
      for (int32_t e = 0; e < kExperts; ++e) {
        if (round < kRowsOf[e]) experts.push_back(e);
      }
    }
    return experts;
  }

 private:
  std::unique_ptr<ExpertWeights> weights_;
};

TEST_P(MoeOrderTest, NoBitDependsOnTheOrderOfThreadsAndBlocks) {
  const std::vector<int32_t> experts = Dealt();
  const HostMatrix x = RandomMatrix(static_cast<int64_t>(experts.size()), kHidden, 1);
  const HostMatrix logits = RandomMatrix(9, 64, 2);
  const RoutingRule rule = {.experts = 64, .chosen = 8, .groups = 8, .groups_kept = 4, .normalise = true};
  const HostMatrix expected = Mix(x, experts);
  const Routed routed = RunRoute(*this, logits, rule);
  for (const uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    cuda_twin::TwinDevice().SetThreadOrderSeed(seed);
    ExpectSameBits(Mix(x, experts), expected);
    const Routed again = RunRoute(*this, logits, rule);
    EXPECT_EQ(again.experts, routed.experts);
    for (size_t i = 0; i < again.weights.size(); ++i) {
      EXPECT_EQ(BitsOfFloat(again.weights[i]), BitsOfFloat(routed.weights[i]));
    }
  }
}

TEST_P(MoeOrderTest, TheTileThatARowStandsInDoesNotShow) {
  const std::vector<int32_t> experts = Dealt();
  const HostMatrix x = RandomMatrix(static_cast<int64_t>(experts.size()), kHidden, 1);
  const HostMatrix together = Mix(x, experts);
  for (int32_t e = 0; e < kExperts; ++e) {
    std::vector<int32_t> rows;
    for (size_t n = 0; n < experts.size(); ++n) {
      if (experts[n] == e) rows.push_back(static_cast<int32_t>(n));
    }
    for (const size_t count : {size_t{1}, size_t{4}, rows.size()}) {
      SCOPED_TRACE(absl::StrCat("expert ", e, ", ", count, " rows"));
      const std::vector<int32_t> last(rows.end() - static_cast<ptrdiff_t>(count), rows.end());
      ExpectSameBits(Mix(SelectRows(x, last), std::vector<int32_t>(count, e)), SelectRows(together, last));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, MoeOrderTest, ::testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& param) { return param.param == DType::kF32 ? "F32" : "Bf16"; });

}  // namespace
}  // namespace quicksilver
