#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/candidates_case.h"
#include "tests/kernels/rotate_case.h"

namespace quicksilver {
namespace {

// What everything else is compared with is itself held to numbers worked out by hand.
class ReferenceOpsTest : public OpsTestBase {
 protected:
  void SetUp() override { UseOps(MakeReferenceOps(DType::kF32)); }
};

TEST_F(ReferenceOpsTest, RmsNormDividesByTheRootMeanSquare) {
  // The mean square is 25 / 4, its root 2.5.
  const DeviceMatrix x = Put({1, 4, {3.0f, 4.0f, 0.0f, 0.0f}}), out = Space(1, 4);
  const DeviceArray<float> gain = PutArray<float>({1.0f, 10.0f, 1.0f, 1.0f});
  ops().RmsNorm(x, gain.data(), 0.0f, out);
  ExpectNear(Get(out), {1, 4, {1.2f, 16.0f, 0.0f, 0.0f}}, 1e-6, 0.0);
  // Epsilon is added under the root: 6.25 + 2.75 = 9.
  ops().RmsNorm(x, gain.data(), 2.75f, out);
  ExpectNear(Get(out), {1, 4, {1.0f, 40.0f / 3.0f, 0.0f, 0.0f}}, 1e-6, 0.0);
}

TEST_F(ReferenceOpsTest, RmsNormRoundsBeforeTheGain) {
  UseOps(MakeReferenceOps(DType::kBf16));
  // 1 / sqrt(1/2) = 1.41421 rounds to 1.4140625; times 3 is 4.2421875, nearer to 4.25 than to 4.21875.
  const DeviceMatrix x = Put({1, 2, {1.0f, 0.0f}}), out = Space(1, 2);
  const DeviceArray<float> gain = PutArray<float>({3.0f, 1.0f});
  ops().RmsNorm(x, gain.data(), 0.0f, out);
  EXPECT_EQ(Get(out).at(0, 0), 4.25f);
  // 1.4140625 * 1.00823 = 1.425700, below the midpoint 1.42578125; 1.4142136 * 1.00823 = 1.425853 is above it.
  const DeviceArray<float> telling = PutArray<float>({1.00823f, 1.0f});
  ops().RmsNorm(x, telling.data(), 0.0f, out);
  EXPECT_EQ(Get(out).at(0, 0), 1.421875f);
}

TEST_F(ReferenceOpsTest, RopeRotatesTheHalvesOfAHead) {
  // hd = 4, theta = 100: pair 0 (elements 0 and 2) turns by 1 radian a position, pair 1 (1 and 3) by 100^(-1/2) = 0.1.
  const RotateCase rotate = {.head_size = 4, .rope = {.theta = 100.0, .full_precision = true}};
  const HostMatrix qkv(1, 12, {1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  const HostMatrix turned(1, 12, {-0.41614684f, 0.98006658f, 0.90929743f, 0.19866933f, 0, 0, 0, 0, 0, 0, 0, 0});
  ExpectNear(RunRotate(*this, rotate, qkv, {2}, {0}).qkv, turned, 1e-6, 0.0);
}

TEST_F(ReferenceOpsTest, RopeOfAPartOfAHeadHasThePartsFrequencies) {
  // Of 8 elements 4 are rotated, as above; in proportion, elements 0 and 4 turn by 1 radian and 1 and 5 by 100^(-2/8).
  RotateCase rotate = {.head_size = 8, .rope = {.theta = 100.0, .rotary_size = 4, .full_precision = true}};
  HostMatrix qkv(1, 24);
  for (int64_t c = 0; c < 8; ++c) qkv.at(0, c) = c < 2 ? 1.0f : 0.0f;
  HostMatrix turned(1, 24);
  turned.at(0, 0) = -0.41614684f, turned.at(0, 1) = 0.98006658f;
  turned.at(0, 2) = 0.90929743f, turned.at(0, 3) = 0.19866933f;
  ExpectNear(RunRotate(*this, rotate, qkv, {2}, {0}).qkv, turned, 1e-6, 0.0);
  rotate.rope.proportional = true;
  turned = HostMatrix(1, 24);
  turned.at(0, 0) = -0.41614684f, turned.at(0, 4) = 0.90929743f;
  turned.at(0, 1) = 0.80657841f, turned.at(0, 5) = 0.59112712f;  // cos and sin of 2 / sqrt(10).
  ExpectNear(RunRotate(*this, rotate, qkv, {2}, {0}).qkv, turned, 1e-6, 0.0);
}

TEST_F(ReferenceOpsTest, GatedMulMultipliesTheUpHalfByTheGate) {
  const DeviceMatrix in = Put({1, 4, {0.0f, 1.0f, 5.0f, 2.0f}}), out = Space(1, 2);
  ops().GatedMul(Activation::kSilu, in, out);
  // silu(1) = 1 / (1 + e^-1) = 0.731058579
  ExpectNear(Get(out), {1, 2, {0.0f, 1.462117157f}}, 1e-6, 0.0);
  ops().GatedMul(Activation::kGeluTanh, in, out);
  // gelu(1) = (1 + tanh(sqrt(2 / pi) 1.044715)) / 2 = 0.841191991
  ExpectNear(Get(out), {1, 2, {0.0f, 1.682383981f}}, 1e-6, 0.0);
}

TEST_F(ReferenceOpsTest, GemmMultipliesByTheTransposedWeight) {
  const std::unique_ptr<GemmWeight> weight = Prepare({2, 3, {1, 2, 3, 4, 5, 6}});
  const DeviceMatrix x = Put({1, 3, {1.0f, 0.0f, -1.0f}}), out = Space(1, 2);
  ops().Gemm(x, *weight, out);
  ExpectSameBits(Get(out), {1, 2, {-2.0f, -2.0f}});
}

TEST_F(ReferenceOpsTest, AttentionAveragesTheVisibleValues) {
  // One head of size 1. Query 0 weighs all keys alike; ln 3 weighs the key 1 three times as much as the key 0.
  const AttentionShape shape = {.heads = 1, .kv_heads = 1, .head_size = 1, .page_size = 2, .block_length = 2};
  const TestSequence sequence = {0,
                                 {4, 1, {0.0f, std::log(3.0f), 0.0f, std::log(3.0f)}},
                                 {4, 1, {0.0f, 1.0f, 1.0f, 1.0f}},
                                 {4, 1, {8.0f, 4.0f, 0.0f, 20.0f}}};
  // The first block sees two keys: (8 + 4) / 2 and (8 + 3 * 4) / 4. The second sees four: 32 / 4 and (8 + 3 * 24) / 10.
  ExpectNear(RunAttention(*this, shape, {sequence}, 1), {4, 1, {6.0f, 5.0f, 8.0f, 8.0f}}, 1e-6, 0.0);
}

TEST_F(ReferenceOpsTest, AttentionDividesByTheRootOfTheHeadSize) {
  // Scores 4 * ln 3 / 2 / 2 = ln 3 and 0.
  const float s = std::log(3.0f) / 2.0f;
  const AttentionShape shape = {.heads = 1, .kv_heads = 1, .head_size = 4, .page_size = 2, .block_length = 2};
  const TestSequence sequence = {
      0, {1, 4, {s, s, s, s}}, {2, 4, {1, 1, 1, 1, 0, 0, 0, 0}}, {2, 4, {4, 8, 0, 0, 0, 0, 4, 8}}};
  ExpectNear(RunAttention(*this, shape, {sequence}, 1), {1, 4, {3.0f, 6.0f, 1.0f, 2.0f}}, 1e-6, 0.0);
}

TEST_F(ReferenceOpsTest, CandidatesOfThreeLogits) {
  // e^ln1 + e^ln2 + e^ln5 = 8; mean = (2 ln 2 + 5 ln 5) / 8; with T = 1/2 the sum is 1 + 4 + 25 = 30.
  const std::unique_ptr<GemmWeight> weight = Prepare({3, 1, {0.0f, std::log(2.0f), std::log(5.0f)}});
  const CandidateRequest request = {.temperature = 0.5f};
  const Candidate c =
      RunCandidates(*this, {1, 1, {1.0f}}, *weight, {.first_id = 4, .vocabulary = 7}, {request}).candidates[0];
  EXPECT_EQ(c.best_id, 6);
  EXPECT_FLOAT_EQ(c.best_logit, 1.609437912f);
  EXPECT_FLOAT_EQ(c.second_logit, 0.693147181f);
  EXPECT_FLOAT_EQ(c.log_sum_exp, 2.079441542f);
  EXPECT_FLOAT_EQ(c.mean_logit, 1.179185490f);
  EXPECT_FLOAT_EQ(c.tempered_log_sum_exp, 3.401197382f);
}

}  // namespace
}  // namespace quicksilver
