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

}  // namespace
}  // namespace quicksilver
