#include "worker/model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/model_group.h"
#include "tests/support/temp_directory.h"
#include "tools/random_checkpoint.h"
#include "worker/collectives/local_communicator.h"
#include "worker/model/load_spec.h"
#include "worker/model/sharding.h"

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::HasSubstr;

ModelGroup::MakeOps Reference(DType activation = DType::kF32) {
  return [activation] { return MakeReferenceOps(activation); };
}

RandomCheckpointOptions Tiny(const TempDirectory& directory) {
  RandomCheckpointOptions options;
  options.directory = directory.path();
  options.hidden = 32;
  options.layers = 2;
  options.heads = 4;
  options.kv_heads = 2;
  options.head_size = 8;
  options.mlp = 48;
  options.vocabulary = 50;
  options.positions = 256;
  options.block = 4;
  return options;
}

std::unique_ptr<ModelGroup> LoadGroup(const std::string& directory, int ranks, const ModelGroup::MakeOps& make_ops) {
  auto group = ModelGroup::Load(directory, ranks, make_ops, ModelGroup::Sizes());
  CHECK(group.ok());
  return *std::move(group);
}

std::vector<TokenId> SomeIds(int32_t count, TokenId vocabulary) {
  std::vector<TokenId> ids(count);
  for (int32_t i = 0; i < count; ++i) ids[i] = (i * 7 + i * i * 3 + 1) % vocabulary;
  return ids;
}

double MaxDifference(const HostRows& a, const HostRows& b) {
  CHECK(a.values.size() == b.values.size());
  double difference = 0.0;
  for (size_t i = 0; i < a.values.size(); ++i)
    difference = std::max(difference, std::abs(double{a.values[i]} - b.values[i]));
  return difference;
}

class TransformerTest : public testing::Test {
 protected:
  TempDirectory directory_;
};

// The rows [first, first + count) of the whole, as one run of floats.
std::vector<float> RowsOf(const HostRows& rows, int64_t first, int64_t count) {
  return {rows.row(first), rows.row(first) + count * rows.cols};
}

// Prompt length; whether the fast operations run.
class PagedCacheTest : public TransformerTest, public testing::WithParamInterface<std::tuple<int, bool>> {};

// Promise 2 of the architecture: how a prompt was cut, and what a block's canvas was before, leaves no trace in the
// bits.
TEST_P(PagedCacheTest, PrefillInChunksAndBlockStepsGiveTheBitsOfOneForward) {
  constexpr int32_t kBlock = 4;
  const auto [prompt, fast] = GetParam();
  const auto make_ops = [fast = fast] {
    return fast ? MakeCpuOps(DType::kF32, CpuOpsOptions()) : MakeReferenceOps(DType::kF32);
  };
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  for (const int ranks : {1, 2}) {
    const auto group = LoadGroup(directory_.path(), ranks, make_ops);
    const TokenId mask = group->spec().mask_id;
    const int32_t closed = prompt / kBlock * kBlock;  // Whole blocks; the rest shares its block with masks.
    std::vector<TokenId> canvas = SomeIds(prompt, 48);
    canvas.resize(closed + kBlock, mask);
    const std::vector<int32_t> in_order = {0, 1, 2, 3, 4};
    const std::vector<int32_t> scattered = {9, 33, 6, 20, 11};
    const HostRows before = group->Logits({{canvas, 0, in_order}}, kBlock);

    for (const int32_t chunk : {kBlock, 2 * kBlock, 5 * kBlock}) {
      for (int32_t done = 0; done < closed; done += chunk) {
        const auto begin = canvas.begin() + done;
        group->Logits({{{begin, begin + std::min(chunk, closed - done)}, done, scattered}}, kBlock);
      }
      const std::vector<TokenId> block(canvas.begin() + closed, canvas.end());
      const HostRows step = group->Logits({{block, closed, scattered}}, kBlock);
      EXPECT_TRUE(step.values == RowsOf(before, closed, kBlock)) << "chunk " << chunk << ", ranks " << ranks;
    }

    // The next step of the block overwrites what the masks left in the cache.
    std::vector<TokenId> committed = canvas;
    std::replace(committed.begin() + closed, committed.end(), mask, TokenId{17});
    const HostRows after = group->Logits({{committed, 0, in_order}}, kBlock);
    const std::vector<TokenId> block(committed.begin() + closed, committed.end());
    EXPECT_TRUE(group->Logits({{block, closed, scattered}}, kBlock).values == RowsOf(after, closed, kBlock));
  }
}

// P mod B = 0, 1, B - 1.
INSTANTIATE_TEST_SUITE_P(PromptLengths, PagedCacheTest, testing::Combine(testing::Values(16, 17, 19), testing::Bool()));

TEST_F(TransformerTest, PrefillAndDenoiseShareAForwardWithoutTouchingEachOther) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  const auto group = LoadGroup(directory_.path(), 1, Reference());
  const TestSegment prefill{SomeIds(12, 48), 0, {1, 2}};
  const TestSegment first_block{SomeIds(4, 48), 0, {5}};
  const HostRows alone = group->Logits({prefill}, 4);
  const HostRows other = group->Logits({first_block}, 4);
  const HostRows both = group->Logits({first_block, prefill}, 4);
  EXPECT_TRUE(RowsOf(both, 0, 4) == other.values);
  EXPECT_TRUE(RowsOf(both, 4, 12) == alone.values);
}

// 9 MB of embedding: too large to keep whole on every rank. 36,001 ids leave padding rows on the last one.
TEST_F(TransformerTest, AShardedEmbeddingGivesTheNumbersOfAWholeOne) {
  RandomCheckpointOptions options = Tiny(directory_);
  options.layers = 1;
  options.type = StoredType::kF32;
  options.hidden = 64;
  options.vocabulary = 36'001;
  for (const bool tied : {false, true}) {
    options.tied = tied;
    ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
    const TestSegment segment{{0, 9'000, 9'001, 18'001, 27'003, 36'000, 35'999, 5}, 0, {3}};
    const HostRows one = LoadGroup(directory_.path(), 1, Reference())->Logits({segment}, 4);
    for (const int ranks : {2, 4}) {
      const auto group = LoadGroup(directory_.path(), ranks, Reference());
      EXPECT_LT(group->model(1).weight_bytes(), 3 * 4 * 64 * 36'001 / ranks);
      EXPECT_LE(MaxDifference(group->Logits({segment}, 4), one), 1e-4) << ranks;
    }
  }
}

TEST_F(TransformerTest, KvHeadsAreReplicatedWhenThereAreMoreRanksThanHeads) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  const TestSegment segment{SomeIds(16, 48), 0, {0, 1}};
  const HostRows one = LoadGroup(directory_.path(), 1, Reference())->Logits({segment}, 4);
  const auto group = LoadGroup(directory_.path(), 4, Reference());
  EXPECT_LE(MaxDifference(group->Logits({segment}, 4), one), 1e-4);
  EXPECT_EQ(group->model(0).kv_bytes(), 64u * 8 * 2 * 2 * 8 * 4) << "pages, positions, k and v, layers, hd, float";
}

TEST_F(TransformerTest, HalfPrecisionCheckpointsAreWidenedExactly) {
  RandomCheckpointOptions options = Tiny(directory_);
  options.type = StoredType::kF32;
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  const TestSegment segment{SomeIds(8, 48), 0, {0}};
  const HostRows full = LoadGroup(directory_.path(), 1, Reference())->Logits({segment}, 4);
  options.type = StoredType::kF16;
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  const HostRows half = LoadGroup(directory_.path(), 1, Reference())->Logits({segment}, 4);
  EXPECT_LE(MaxDifference(full, half), 0.02);
  EXPECT_GT(MaxDifference(full, half), 0.0);
}

TEST_F(TransformerTest, ShardedFilesHoldTheSameModel) {
  RandomCheckpointOptions options = Tiny(directory_);
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  TempDirectory other;
  options.directory = other.path();
  options.shards = 3;
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  const TestSegment segment{SomeIds(8, 48), 0, {0}};
  EXPECT_TRUE(LoadGroup(directory_.path(), 2, Reference())->Logits({segment}, 4).values ==
              LoadGroup(other.path(), 2, Reference())->Logits({segment}, 4).values);
}

TEST_F(TransformerTest, WhatARankHoldsIsItsBudget) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  const auto group = LoadGroup(directory_.path(), 2, Reference());
  const Shard shard = *MakeShard(group->spec(), 0, 2);
  const RankBudget budget = BudgetOf(group->spec(), shard, DType::kF32);
  EXPECT_EQ(group->model(0).kv_bytes(), static_cast<size_t>(budget.kv_position_bytes) * 64 * 8);
  EXPECT_GE(group->model(0).weight_bytes(), static_cast<size_t>(budget.weight_bytes));
}

class LoadFaultTest : public TransformerTest {
 protected:
  absl::Status Load(int ranks) {
    return ModelGroup::Load(directory_.path(), ranks, Reference(), ModelGroup::Sizes()).status();
  }
  std::string ErrorOfLoad(int ranks) {
    const absl::Status status = Load(ranks);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  }
  void SetConfig(const std::string& field, const nlohmann::json& value) {
    nlohmann::json config = nlohmann::json::parse(directory_.Read("config.json"));
    config[field] = value;
    directory_.Write("config.json", config.dump());
  }
  // Changes the header of model.safetensors in place; equal lengths, so that offsets stay right.
  void ReplaceInWeights(const std::string& from, const std::string& to) {
    CHECK(from.size() == to.size());
    std::string bytes = directory_.Read("model.safetensors");
    const size_t at = bytes.find(from);
    CHECK(at != std::string::npos);
    directory_.Write("model.safetensors", bytes.replace(at, from.size(), to));
  }
};

TEST_F(LoadFaultTest, AShapeThatIsNotTheConfigsIsRefusedWithBoth) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  SetConfig("intermediate_size", 64);
  EXPECT_THAT(ErrorOfLoad(1), AllOf(HasSubstr(directory_.PathOf("model.safetensors")),
                                    HasSubstr("tensor 'model.layers.0.mlp.gate_proj.weight': expected BF16 [64, 32], "
                                              "found BF16 [48, 32]")));
}

TEST_F(LoadFaultTest, AMissingTensorIsNamed) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  SetConfig("num_hidden_layers", 3);
  EXPECT_THAT(ErrorOfLoad(1),
              HasSubstr("tensor 'model.layers.2.input_layernorm.weight': expected BF16 [32], found none"));
  ReplaceInWeights("\"model.embed_tokens.weight\"", "\"model.embed_tokens.weighs\"");
  EXPECT_THAT(ErrorOfLoad(1), HasSubstr("tensor 'model.embed_tokens.weight': expected in the checkpoint, found none"));
}

TEST_F(LoadFaultTest, ATensorTooManyIsNamed) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  SetConfig("num_hidden_layers", 1);
  EXPECT_THAT(ErrorOfLoad(1), HasSubstr("tensor 'model.layers.1.input_layernorm.weight': expected no such tensor"));
}

TEST_F(LoadFaultTest, TensorsThatThePublishedCodeIgnoresAreIgnored) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  SetConfig("tie_word_embeddings", true);
  EXPECT_TRUE(Load(1).ok()) << "the LM head of a tied model";
  RandomCheckpointOptions options = Tiny(directory_);
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  std::string bytes = directory_.Read("model.safetensors");
  const size_t header_end = bytes.find("}}");
  const std::string more =
      R"(},"model.layers.0.self_attn.rotary_emb.inv_freq":{"dtype":"F32","shape":[0],"data_offsets":[0,0])";
  bytes.insert(header_end, more);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  length += more.size();
  std::memcpy(bytes.data(), &length, sizeof(length));
  directory_.Write("model.safetensors", bytes);
  EXPECT_TRUE(Load(1).ok()) << Load(1);
}

TEST_F(LoadFaultTest, AMatrixOfAnotherTypeThanTheRestIsRefused) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  ReplaceInWeights(R"("model.layers.1.self_attn.k_proj.weight":{"dtype":"BF16")",
                   R"("model.layers.1.self_attn.k_proj.weight":{"dtype": "F16")");
  EXPECT_THAT(ErrorOfLoad(1),
              HasSubstr("tensor 'model.layers.1.self_attn.k_proj.weight': expected BF16 [16, 32], found "
                        "F16 [16, 32]"));
}

TEST_F(LoadFaultTest, RanksThatCannotShareTheModelAreRefusedWithTheNumbers) {
  RandomCheckpointOptions options = Tiny(directory_);
  options.heads = 6;
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  EXPECT_THAT(ErrorOfLoad(4), HasSubstr("tensor_parallel_size 4: expected a divisor of the 6 query heads, found "
                                        "remainder 2"));
}

TEST_F(LoadFaultTest, APageMustHoldWholeBlocks) {
  RandomCheckpointOptions options = Tiny(directory_);
  options.block = 16;
  ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
  EXPECT_THAT(ErrorOfLoad(1), HasSubstr("multiple of the block of 16, found 8"));
}

// Scenario: the storage fails after the headers were read.
TEST_F(LoadFaultTest, AFileCutAfterItWasOpenedIsAnIoErrorAndNoSignal) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok());
  const auto spec = LoadModelSpec(**checkpoint);
  ASSERT_TRUE(spec.ok());
  ASSERT_EQ(truncate(directory_.PathOf("model.safetensors").c_str(), 20'000), 0);
  const auto ops = MakeReferenceOps(DType::kF32);
  const auto ranks = MakeLocalCommunicator();
  const absl::Status status = Transformer::Load(*spec, **checkpoint, *ops, *ranks, 8, 1, 8).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("I/O error reading " + directory_.PathOf("model.safetensors")));
}

TEST_F(TransformerTest, LoadingReportsItsProgressUpToTheEnd) {
  ASSERT_TRUE(WriteRandomCheckpoint(Tiny(directory_)).ok());
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok());
  const auto spec = LoadModelSpec(**checkpoint);
  ASSERT_TRUE(spec.ok());
  const auto ops = MakeReferenceOps(DType::kF32);
  const auto ranks = MakeLocalCommunicator();
  std::vector<size_t> done;
  size_t total = 0;
  ASSERT_TRUE(Transformer::Load(*spec, **checkpoint, *ops, *ranks, 8, 1, 8, [&](size_t bytes, size_t of) {
                done.push_back(bytes);
                total = of;
              }).ok());
  EXPECT_EQ(done.size(), 3u);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), total);
}

}  // namespace
}  // namespace quicksilver
