#include "tools/gpu/step_cost.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tools/gpu/bench_cases.h"
#include "tools/gpu/bench_model.h"

namespace quicksilver {
namespace {

ModelSpec Spec(const std::string& model) {
  const absl::StatusOr<ModelSpec> spec = PublishedSpec(model);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *spec;
}

StepCost CostOfWhole(const std::string& model, const StepWork& work, bool fp8_layers = false) {
  const ModelSpec spec = Spec(model);
  return CostOf(spec, *MakeShard(spec, 0, 1), work, fp8_layers);
}

constexpr double kGainBytesOfLlada = 4.0 * 4096 * 65;

// The numbers of parameters are the published ones.
TEST(StepCostTest, AStepReadsEveryWeightOnceButTheEmbeddingTable) {
  const StepWork work = WorkOf(/*sequences=*/1, /*rows=*/32, /*head_rows=*/32, /*keys=*/1056);
  EXPECT_DOUBLE_EQ(CostOfWhole("llada-8b", work).weight_bytes, 2.0 * (6979321856.0 + 517996544.0) + kGainBytesOfLlada);
  const double gains = 4.0 * (36 * (2 * 4096 + 2 * 128) + 4096);
  EXPECT_DOUBLE_EQ(CostOfWhole("sdar-8b", work).weight_bytes, 2.0 * (6945767424.0 + 622329856.0) + gains);
  const double small_gains = 4.0 * (28 * (2 * 2048 + 2 * 128) + 2048);
  EXPECT_DOUBLE_EQ(CostOfWhole("sdar-1.7b", work).weight_bytes, 2.0 * (1409286144.0 + 311164928.0) + small_gains);
}

TEST(StepCostTest, Fp8LayersTakeAByteAnElementAndAFloatAChannelAndTheHeadStaysAsItIs) {
  const StepWork work = WorkOf(1, 32, 32, 1056);
  const double channels = 32.0 * (3 * 4096 + 4096 + 2 * 12288 + 4096);
  EXPECT_DOUBLE_EQ(CostOfWhole("llada-8b", work, /*fp8_layers=*/true).weight_bytes,
                   6979321856.0 + 4.0 * channels + 2.0 * 517996544.0 + kGainBytesOfLlada);
}

TEST(StepCostTest, KeysAreReadOnceASequenceAndThoseOfTheStepAreWritten) {
  const StepCost cost = CostOfWhole("llada-8b", WorkOf(/*sequences=*/64, 32, 32, 1056));
  EXPECT_DOUBLE_EQ(cost.kv_bytes, 524288.0 * 64 * (1056 + 32));
  EXPECT_DOUBLE_EQ(CostOfWhole("sdar-1.7b", WorkOf(1, 4, 4, 1028)).kv_bytes, 114688.0 * (1028 + 4));
}

TEST(StepCostTest, ArithmeticFollowsRowsHeadRowsAndPairs) {
  const StepCost cost =
      CostOfWhole("llada-8b", WorkOf(/*sequences=*/2, /*rows=*/1024, /*head_rows=*/32, /*keys=*/1024));
  EXPECT_DOUBLE_EQ(cost.layer_flops, 2.0 * 6979321856.0 * 2048);
  EXPECT_DOUBLE_EQ(cost.head_flops, 2.0 * 517996544.0 * 64);
  EXPECT_DOUBLE_EQ(cost.attention_flops, 524288.0 * 2 * 1024 * 1024);
}

constexpr Ceilings kRound = {
    .copy_bytes_per_second = 1e12, .bf16_flops_per_second = 1e14, .fp8_flops_per_second = 2e14};

TEST(StepFloorTest, TheLargerOfBytesAndArithmeticIsTheFloor) {
  const StepFloor small = FloorOf({.weight_bytes = 3e9, .kv_bytes = 1e9, .layer_flops = 1e11}, kRound, false);
  EXPECT_DOUBLE_EQ(small.seconds, 4e-3);
  EXPECT_EQ(small.bound, FloorBound::kBytes);
  const StepFloor large =
      FloorOf({.weight_bytes = 3e9, .layer_flops = 1e12, .head_flops = 1e11, .attention_flops = 2e11}, kRound, false);
  EXPECT_DOUBLE_EQ(large.seconds, 13e-3);
  EXPECT_EQ(large.bound, FloorBound::kFlops);
}

TEST(StepFloorTest, OnlyTheLayersRunAtTheFp8Peak) {
  const StepFloor floor = FloorOf({.layer_flops = 1e12, .head_flops = 1e11, .attention_flops = 2e11}, kRound, true);
  EXPECT_DOUBLE_EQ(floor.seconds, 5e-3 + 3e-3);
}

// At the planning figures of an H100 (3.0 TB/s, 790 TFLOP/s).
TEST(StepFloorTest, ALladaStepOfOneBlockIsBoundByItsWeights) {
  const Ceilings h100 = {3.0e12, 790e12, 1580e12};
  const StepFloor one = FloorOf(CostOfWhole("llada-8b", WorkOf(1, 32, 32, 1056)), h100, false);
  EXPECT_EQ(one.bound, FloorBound::kBytes);
  EXPECT_NEAR(one.seconds, 5.19e-3, 0.01e-3);
  const StepFloor many = FloorOf(CostOfWhole("llada-8b", WorkOf(64, 32, 32, 1056)), h100, false);
  EXPECT_EQ(many.bound, FloorBound::kFlops);
}

TEST(BenchCasesTest, NamesAreUniqueAndEveryModelIsKnown) {
  for (const bool toy : {false, true}) {
    std::set<std::string> names;
    for (const BenchCase& each : BenchCases(toy)) {
      EXPECT_TRUE(names.insert(each.name).second) << each.name;
      if (each.model.empty()) continue;
      EXPECT_TRUE(PublishedSpec(each.model).ok()) << each.name;
      EXPECT_EQ(each.step.whole_canvas ? 0 : each.step.context % each.step.block_length, 0) << each.name;
    }
  }
}

TEST(PublishedSpecTest, AnUnknownModelIsNamed) {
  EXPECT_NE(PublishedSpec("gpt").status().message().find("gpt"), absl::string_view::npos);
}

TEST(RandomWeightsTest, NoTwoRowsOfAMatrixAreAlike) {
  const ModelSpec spec = Spec("llada-8b");
  const std::unique_ptr<Checkpoint> weights = MakeRandomWeights(spec);
  const StoredTensor* head = weights->Find("model.transformer.ff_out.weight");
  ASSERT_NE(head, nullptr);
  std::set<std::string> rows;
  for (int64_t row = 0; row < 126464; row += 61) {
    std::string bytes(4096 * 2, '\0');
    ASSERT_TRUE(weights->Read(*head, static_cast<uint64_t>(row) * bytes.size(), bytes.size(), bytes.data()).ok());
    rows.insert(bytes.substr(0, 64));
  }
  EXPECT_EQ(rows.size(), 2074u);
}

}  // namespace
}  // namespace quicksilver
