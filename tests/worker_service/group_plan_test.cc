#include "worker/service/group_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

class GroupPlanTest : public ::testing::Test {
 protected:
  GroupPlanTest() {
    options_.model = "models/demo";
    model_ = *OpenModelForServing(options_);
  }
  GroupPlan Plan(int cores = 2) { return *MakeGroupPlan(options_, model_, Processor(cores)); }
  static Machine Processor(int cores) { return {.cores = cores, .int8_products = true, .device_name = "cpu"}; }
  static Machine Gpu(int64_t bytes) { return {.cuda = true, .cores = 8, .device_name = "H100", .device_bytes = bytes}; }

  WorkerOptions options_;
  OpenModel model_;
};

TEST_F(GroupPlanTest, TheDefaultCacheHoldsEverySequenceAtFullLength) {
  const GroupPlan plan = Plan();
  EXPECT_EQ(int64_t{plan.pages} * plan.page_size, options_.sequences_max * model_.spec.positions_max);
  EXPECT_EQ(plan.page_size % model_.spec.block_length, 0);
  EXPECT_EQ(plan.model_length, model_.spec.positions_max);
}

TEST_F(GroupPlanTest, TheDefaultCacheStaysWithinOneGibibyte) {
  options_.sequences_max = 4096;
  const GroupPlan plan = Plan();
  const int64_t bytes = int64_t{plan.pages} * plan.page_size * plan.budget.kv_position_bytes;
  EXPECT_LE(bytes, (int64_t{1} << 30) + plan.page_size * plan.budget.kv_position_bytes);
  EXPECT_GT(bytes, int64_t{900} << 20);
}

TEST_F(GroupPlanTest, KvTokensAreRoundedUpToPagesAndBoundTheModelsLength) {
  options_.kv_tokens = 100;
  const GroupPlan plan = Plan();
  EXPECT_EQ(plan.pages, (100 + plan.page_size - 1) / plan.page_size);
  EXPECT_EQ(plan.model_length, plan.pages * plan.page_size);
}

TEST_F(GroupPlanTest, CoresAreSharedByTheRanks) {
  options_.tensor_parallel_size = 2;
  EXPECT_EQ(Plan(8).threads, 4);
  EXPECT_EQ(Plan(1).threads, 1);
  options_.threads = 3;
  EXPECT_EQ(Plan(8).threads, 3);
}

TEST_F(GroupPlanTest, SizesThatDoNotFitTheBlockNameFlagValueAndBound) {
  options_.page_size = model_.spec.block_length + 1;
  const absl::Status page = MakeGroupPlan(options_, model_, Processor(2)).status();
  EXPECT_TRUE(absl::IsOutOfRange(page));
  EXPECT_THAT(std::string(page.message()), HasSubstr("--page-size: " + std::to_string(options_.page_size)));
  options_.page_size = 0;
  options_.step_rows_max = model_.spec.block_length - 1;
  const absl::Status rows = MakeGroupPlan(options_, model_, Processor(2)).status();
  EXPECT_TRUE(absl::IsOutOfRange(rows));
  EXPECT_THAT(std::string(rows.message()), HasSubstr("--step-rows-max"));
}

TEST_F(GroupPlanTest, TheFingerprintChangesWithWhatChangesBytesAlone) {
  GroupPlan plan = Plan();
  ASSERT_TRUE(ReadDigests(model_, plan).ok());
  EXPECT_EQ(plan.tokenizer_digest.size(), 64u);
  const std::string fingerprint = DescribeGroup(options_, plan, "kernels").fingerprint();
  EXPECT_EQ(fingerprint.size(), 64u);
  EXPECT_NE(DescribeGroup(options_, plan, "others").fingerprint(), fingerprint);
  WorkerOptions two = options_;
  two.tensor_parallel_size = 2;
  EXPECT_NE(DescribeGroup(two, plan, "kernels").fingerprint(), fingerprint);
  GroupPlan other = plan;
  other.model_digest[0] ^= 1;
  EXPECT_NE(DescribeGroup(options_, other, "kernels").fingerprint(), fingerprint);
  GroupPlan larger = plan;
  larger.pages *= 2;
  EXPECT_EQ(DescribeGroup(options_, larger, "kernels").fingerprint(), fingerprint);
  larger.threads += 1;
  EXPECT_NE(DescribeGroup(options_, larger, "kernels").fingerprint(), fingerprint);
}

TEST_F(GroupPlanTest, CoordinatorsLearnTheFamilyAndWhatItsRequestsMayChoose) {
  GroupPlan plan = Plan();
  const v1::GroupInfo blocks = DescribeGroup(options_, plan, "kernels");
  EXPECT_EQ(blocks.family(), "sdar");
  EXPECT_EQ(blocks.grid(), v1::GRID_ABSOLUTE);
  EXPECT_FALSE(blocks.infill()) << "nothing sees what is right of its block";
  EXPECT_THAT(blocks.policies(), ::testing::Contains(v1::POLICY_DYNAMIC));
  EXPECT_THAT(blocks.policies(), ::testing::Not(::testing::Contains(v1::POLICY_ORIGIN)));
  plan.spec.grid = BlockGrid::kAfterPrompt;
  plan.spec.family = "dream";
  plan.spec.shift = true;
  const v1::GroupInfo canvas = DescribeGroup(options_, plan, "kernels");
  EXPECT_EQ(canvas.grid(), v1::GRID_AFTER_PROMPT);
  EXPECT_TRUE(canvas.infill());
  EXPECT_THAT(canvas.policies(), ::testing::Contains(v1::POLICY_ORIGIN));
}

TEST_F(GroupPlanTest, HowExpertsAreSharedAndTheMaskAreAgreedOn) {
  const GroupPlan plan = Plan();
  GroupPlan other = plan;
  other.spec.moe.expert_parallel = true;
  EXPECT_NE(AgreementOf(options_, other), AgreementOf(options_, plan));
  EXPECT_NE(DescribeGroup(options_, other, "kernels").fingerprint(),
            DescribeGroup(options_, plan, "kernels").fingerprint());
  other = plan;
  other.spec.mask_id += 1;
  EXPECT_NE(AgreementOf(options_, other), AgreementOf(options_, plan));
}

TEST_F(GroupPlanTest, ExpertsNeedRoomForTheirRows) {
  OpenModel moe = *OpenModelForServing(options_);
  moe.spec.moe.experts = 64;
  moe.spec.moe.mlp = 1024;
  moe.spec.moe.routing.chosen = 8;
  const GroupPlan dense = Plan(), mixed = *MakeGroupPlan(options_, moe, Processor(2));
  EXPECT_GE(mixed.memory.workspace - dense.memory.workspace, int64_t{dense.engine.step_rows_max} * 8 * 3 * 1024 * 4);
  EXPECT_GT(mixed.memory.weights, dense.memory.weights + int64_t{64} * 3 * 1024 * moe.spec.hidden * 4);
}

TEST_F(GroupPlanTest, LogitsThatAPolicyKeepsNeedRoom) {
  OpenModel causal = *OpenModelForServing(options_);
  causal.spec.block_length = 1;
  causal.spec.shift = true;
  const GroupPlan keeps = Plan(), keeps_none = *MakeGroupPlan(options_, causal, Processor(2));
  ASSERT_EQ(keeps.engine.step_rows_max, keeps_none.engine.step_rows_max);
  EXPECT_EQ(keeps.memory.workspace - keeps_none.memory.workspace,
            std::min(512, keeps.engine.step_rows_max) * keeps.spec.vocabulary * 4);
}

TEST_F(GroupPlanTest, RanksAgreeOnEverythingThatTheSchedulerSees) {
  const GroupPlan plan = Plan();
  const auto agreement = AgreementOf(options_, plan);
  GroupPlan other = plan;
  other.pages += 1;
  EXPECT_NE(AgreementOf(options_, other), agreement);
  other = plan;
  other.engine.step_rows_max += 1;
  EXPECT_NE(AgreementOf(options_, other), agreement);
  other = plan;
  other.threads += 1;  // Each host has its own.
  EXPECT_EQ(AgreementOf(options_, other), agreement);
}

TEST_F(GroupPlanTest, OnAGpuThePagesTakeWhatTheWeightsAndWorkspacesLeave) {
  const int64_t memory = int64_t{8} << 30;
  const GroupPlan plan = *MakeGroupPlan(options_, model_, Gpu(memory));
  EXPECT_EQ(plan.precision.activations, DType::kBf16);
  EXPECT_FALSE(plan.precision.deterministic);
  EXPECT_LE(plan.memory.total(), static_cast<int64_t>(0.9 * memory));
  EXPECT_GT(plan.memory.total() + plan.memory.kv_page, static_cast<int64_t>(0.9 * memory));
  EXPECT_EQ(plan.pages, plan.memory.pages);
  EXPECT_GT(plan.engine.steps_per_launch_max, 1);
}

TEST_F(GroupPlanTest, AModelThatDoesNotFitItsGpuIsRefusedWithEveryNumber) {
  const absl::Status status = MakeGroupPlan(options_, model_, Gpu(int64_t{1} << 30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"weights 0.01 GiB", "workspaces 3.0", "KV pages", "a rank has 0.90 GiB", "0.9 of 1.00 GiB",
                           "--tensor-parallel-size"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  options_.kv_pages = 1 << 20;
  EXPECT_EQ(MakeGroupPlan(options_, model_, Gpu(int64_t{8} << 30)).status().code(),
            absl::StatusCode::kResourceExhausted)
      << "pages that were asked for are not cut down in silence";
}

TEST_F(GroupPlanTest, ModesThatTheProcessorHasNotAreRefusedByName) {
  options_.quantization = "fp8";
  EXPECT_THAT(std::string(MakeGroupPlan(options_, model_, Processor(2)).status().message()),
              HasSubstr("--quantization"));
  options_.quantization = "none";
  options_.deterministic = "off";
  const absl::Status status = MakeGroupPlan(options_, model_, Processor(2)).status();
  EXPECT_TRUE(absl::IsOutOfRange(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--deterministic"));
}

TEST_F(GroupPlanTest, Fp8LayersHalveWhatTheLayersTake) {
  const GroupPlan wide = *MakeGroupPlan(options_, model_, Gpu(int64_t{8} << 30));
  options_.quantization = "fp8";
  const GroupPlan narrow = *MakeGroupPlan(options_, model_, Gpu(int64_t{8} << 30));
  const ModelSpec& spec = model_.spec;
  const int64_t head_and_table = 2 * spec.vocabulary * spec.hidden * 2;
  EXPECT_LT(narrow.memory.weights - head_and_table, (wide.memory.weights - head_and_table) * 11 / 20);
  const std::string fingerprint = DescribeGroup(options_, narrow, "kernels").fingerprint();
  options_.quantization = "none";
  EXPECT_NE(DescribeGroup(options_, wide, "kernels").fingerprint(), fingerprint);
}

TEST_F(GroupPlanTest, Int8LayersAreForProcessorsThatHaveTheInstructions) {
  const GroupPlan wide = Plan();
  options_.quantization = "int8";
  const GroupPlan narrow = Plan();
  EXPECT_TRUE(narrow.precision.int8_layers);
  EXPECT_FALSE(narrow.precision.fp8_layers);
  const ModelSpec& spec = model_.spec;
  const int64_t head_and_table = spec.vocabulary * spec.hidden * (4 + 2);  // Floats, and as stored.
  EXPECT_LT(narrow.memory.weights - head_and_table, (wide.memory.weights - head_and_table) * 3 / 10);
  const std::string fingerprint = DescribeGroup(options_, narrow, "kernels").fingerprint();
  const auto agreement = AgreementOf(options_, narrow);

  Machine old = Processor(2);
  old.int8_products = false;
  const absl::Status without = MakeGroupPlan(options_, model_, old).status();
  EXPECT_TRUE(absl::IsOutOfRange(without));
  EXPECT_THAT(std::string(without.message()), HasSubstr("--quantization: int8 needs"));
  const absl::Status gpu = MakeGroupPlan(options_, model_, Gpu(int64_t{8} << 30)).status();
  EXPECT_TRUE(absl::IsOutOfRange(gpu));
  EXPECT_THAT(std::string(gpu.message()), HasSubstr("int8 is for processors, and the ranks compute on H100"));

  options_.quantization = "none";
  EXPECT_NE(DescribeGroup(options_, wide, "kernels").fingerprint(), fingerprint);
  EXPECT_NE(AgreementOf(options_, wide), agreement);
}

}  // namespace
}  // namespace quicksilver
