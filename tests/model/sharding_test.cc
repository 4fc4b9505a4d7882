#include "worker/model/sharding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// LLaDA-8B with the KV heads of LLaDA2-flash, so that every rule has something to do.
ModelSpec Spec() {
  ModelSpec spec;
  spec.hidden = 4096;
  spec.layers = 32;
  spec.heads = 32;
  spec.kv_heads = 4;
  spec.head_size = 128;
  spec.mlp = 12288;
  spec.vocabulary = spec.tokens = 126464;
  spec.checkpoint_dtype = DType::kBf16;
  return spec;
}

std::string ErrorOf(const ModelSpec& spec, int ranks) {
  const absl::Status status = MakeShard(spec, 0, ranks).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(ShardingTest, RanksTakeConsecutiveRuns) {
  for (int rank = 0; rank < 4; ++rank) {
    const Shard shard = *MakeShard(Spec(), rank, 4);
    EXPECT_EQ(shard.first_head, 8 * rank);
    EXPECT_EQ(shard.heads, 8);
    EXPECT_EQ(shard.first_kv_head, rank);
    EXPECT_EQ(shard.kv_heads, 1);
    EXPECT_EQ(shard.first_mlp, 3072 * rank);
    EXPECT_EQ(shard.mlp, 3072);
    EXPECT_EQ(shard.first_id, 31616 * rank);
    EXPECT_EQ(shard.vocabulary_rows, 31616);
    EXPECT_EQ(shard.stored_rows, 31616);
    EXPECT_FALSE(shard.embedding_replicated);
  }
}

TEST(ShardingTest, WithMoreRanksThanKvHeadsEachHeadLivesOnSeveral) {
  for (int rank = 0; rank < 16; ++rank) {
    const Shard shard = *MakeShard(Spec(), rank, 16);
    EXPECT_EQ(shard.heads, 2);
    EXPECT_EQ(shard.kv_heads, 1);
    EXPECT_EQ(shard.first_kv_head, rank / 4);
    // Query head q of this rank looks at KV head floor(q nkv / nh).
    EXPECT_EQ(shard.first_kv_head, shard.first_head * 4 / 32);
  }
}

TEST(ShardingTest, AVocabularyThatDoesNotDivideIsPaddedOnTheLastRanks) {
  ModelSpec spec = Spec();
  spec.vocabulary = 9;
  int64_t rows = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const Shard shard = *MakeShard(spec, rank, 4);
    EXPECT_EQ(shard.vocabulary_rows, 3);
    rows += shard.stored_rows;
    EXPECT_EQ(shard.stored_rows, rank < 3 ? 3 : 0);
  }
  EXPECT_EQ(rows, 9);
}

TEST(ShardingTest, SizesThatCannotBeSharedAreRefusedWithTheNumbers) {
  EXPECT_THAT(ErrorOf(Spec(), 3),
              AllOf(HasSubstr("tensor_parallel_size 3"), HasSubstr("32 query heads"), HasSubstr("remainder 2")));
  ModelSpec spec = Spec();
  spec.mlp = 12290;
  EXPECT_THAT(ErrorOf(spec, 4), HasSubstr("12290 MLP columns, found remainder 2"));
  spec = Spec();
  spec.heads = 24;
  spec.kv_heads = 3;
  EXPECT_THAT(ErrorOf(spec, 2), HasSubstr("divisor or a multiple of the 3 KV heads"));
  EXPECT_THAT(ErrorOf(Spec(), 0), HasSubstr("expected 1 to 64, found 0"));
  EXPECT_THAT(ErrorOf(Spec(), 128), HasSubstr("expected 1 to 64, found 128"));
}

// The published figures of LLaDA-8B (models.md §0.6, §9.2).
TEST(ShardingTest, TheBudgetOfLlada8bIsThePublishedOne) {
  ModelSpec spec = Spec();
  spec.kv_heads = 32;
  const RankBudget one = BudgetOf(spec, *MakeShard(spec, 0, 1), DType::kBf16);
  const int64_t gains = (2 * 32 + 1) * 4096;
  EXPECT_EQ(one.weight_bytes, 2 * (8'015'581'184 - gains) + 4 * gains);
  EXPECT_EQ(one.step_weight_bytes, one.weight_bytes - 2 * 517'996'544);
  EXPECT_EQ(one.kv_position_bytes, 524'288);
  EXPECT_EQ(one.row_flops, 2 * (6'979'321'856 + 517'996'544));
  EXPECT_EQ(one.attention_flops, 524'288);
  EXPECT_EQ(one.all_reduces, 0);
  const RankBudget eight = BudgetOf(spec, *MakeShard(spec, 3, 8), DType::kBf16);
  EXPECT_EQ(eight.kv_position_bytes, 524'288 / 8);
  EXPECT_EQ(eight.all_reduces, 65);
  EXPECT_EQ(eight.all_reduce_row_bytes, 524'288 + 4096 * 2);
}

// LLaDA2-mini.
ModelSpec Llada2Mini() {
  ModelSpec spec;
  spec.hidden = 2048;
  spec.layers = 20;
  spec.heads = 16;
  spec.kv_heads = 4;
  spec.head_size = 128;
  spec.mlp = 5120;
  spec.vocabulary = spec.tokens = 157184;
  spec.head_norms = true;
  spec.checkpoint_dtype = DType::kBf16;
  spec.moe.experts = 256;
  spec.moe.mlp = spec.moe.shared_mlp = 512;
  spec.moe.first_layer = 1;
  spec.moe.expert_bias = true;
  spec.moe.routing.experts = 256;
  spec.moe.routing.chosen = 8;
  return spec;
}

// The published figures of LLaDA2-mini (models.md §0.6, §9.2), whose count of parameters leaves out the experts'
// biases.
TEST(ShardingTest, TheBudgetOfLlada2MiniIsThePublishedOne) {
  const ModelSpec spec = Llada2Mini();
  const RankBudget one = BudgetOf(spec, *MakeShard(spec, 0, 1), DType::kBf16);
  const int64_t biases = 19 * 256, gains = 41 * 2048 + 2 * 20 * 128;
  EXPECT_EQ(one.weight_bytes, 2 * (16'255'643'392 - biases - gains) + 4 * (biases + gains));
  EXPECT_EQ(one.expert_bytes, int64_t{2} * 19 * 256 * 3 * 512 * 2048);
  EXPECT_EQ(one.step_weight_bytes, one.weight_bytes - one.expert_bytes - 2 * 321'912'832);
  const int64_t head_gains = 2 * 20 * 128;  // Which the published count has among the matrices.
  EXPECT_EQ(one.row_flops, 2 * (789'058'560 - head_gains + 321'912'832));
  EXPECT_EQ(one.kv_position_bytes, 40'960);
  EXPECT_EQ(one.attention_flops, 163'840);
  const RankBudget four = BudgetOf(spec, *MakeShard(spec, 1, 4), DType::kBf16);
  EXPECT_EQ(four.expert_bytes, one.expert_bytes / 4);
  EXPECT_EQ(four.all_reduce_row_bytes, 163'840 + 2048 * 2);
}

TEST(ShardingTest, OnlyWhatADeviceNarrowsShrinks) {
  const ModelSpec spec = Llada2Mini();
  const Shard shard = *MakeShard(spec, 0, 1);
  const int64_t experts = BudgetOf(spec, shard, DType::kBf16).expert_bytes / 2;  // Elements.
  const auto bytes = [&](NarrowWeights narrow) { return DeviceWeightBytes(spec, shard, DType::kBf16, narrow); };
  EXPECT_EQ(bytes(NarrowWeights::kNone), BudgetOf(spec, shard, DType::kBf16).weight_bytes);
  EXPECT_EQ(bytes(NarrowWeights::kDenseLayers) - bytes(NarrowWeights::kLayersAndExperts),
            experts - int64_t{19} * 256 * (2 * 512 + 2048) * 4);
  EXPECT_LT(bytes(NarrowWeights::kDenseLayers), bytes(NarrowWeights::kNone));
}

TEST(ShardingTest, ExpertsAreSharedByColumnsOrWhole) {
  ModelSpec spec = Llada2Mini();
  const Shard columns = *MakeShard(spec, 3, 4);
  EXPECT_EQ(columns.first_expert, 0);
  EXPECT_EQ(columns.experts, 256);
  EXPECT_EQ(columns.first_expert_mlp, 3 * 128);
  EXPECT_EQ(columns.expert_mlp, 128);
  spec.moe.expert_parallel = true;
  const Shard whole = *MakeShard(spec, 3, 4);
  EXPECT_EQ(whole.first_expert, 3 * 64);
  EXPECT_EQ(whole.experts, 64);
  EXPECT_EQ(whole.first_expert_mlp, 0);
  EXPECT_EQ(whole.expert_mlp, 512);
  for (const Shard& shard : {columns, whole}) {
    EXPECT_EQ(shard.first_shared_mlp, 3 * 128);
    EXPECT_EQ(shard.shared_mlp, 128);
    EXPECT_EQ(BudgetOf(spec, shard, DType::kBf16).expert_bytes, int64_t{2} * 19 * 64 * 3 * 512 * 2048);
  }
}

TEST(ShardingTest, ExpertsThatCannotBeSharedAreRefusedWithTheNumbers) {
  ModelSpec spec = Llada2Mini();
  spec.moe.experts = 250;
  EXPECT_TRUE(MakeShard(spec, 0, 4).ok()) << "columns are shared, not experts";
  spec.moe.expert_parallel = true;
  EXPECT_THAT(ErrorOf(spec, 4), AllOf(HasSubstr("tensor_parallel_size 4"), HasSubstr("num_experts"),
                                      HasSubstr("250 experts"), HasSubstr("remainder 2")));
  spec = Llada2Mini();
  spec.moe.mlp = 510;
  EXPECT_THAT(ErrorOf(spec, 4), AllOf(HasSubstr("510 MLP columns of an expert"), HasSubstr("remainder 2")));
  spec.moe.expert_parallel = true;
  EXPECT_TRUE(MakeShard(spec, 0, 4).ok());
  spec.moe.shared_mlp = 510;
  EXPECT_THAT(ErrorOf(spec, 4), HasSubstr("510 MLP columns of the shared expert"));
}

TEST(ShardingTest, MoreRowsTouchMoreExperts) {
  const MoeSpec moe = Llada2Mini().moe;
  EXPECT_DOUBLE_EQ(ExpertsTouched(moe, 1), 8.0 / 256.0);
  EXPECT_GT(ExpertsTouched(moe, 32), 0.6);
  EXPECT_LT(ExpertsTouched(moe, 32), 0.65);
  EXPECT_EQ(ExpertsTouched(MoeSpec(), 32), 0.0);
}

}  // namespace
}  // namespace quicksilver
