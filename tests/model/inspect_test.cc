#include "tools/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "tests/model/plain_network.h"
#include "tests/support/temp_directory.h"
#include "tools/random_checkpoint.h"

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class InspectTest : public testing::Test {
 protected:
  InspectTest() {
    RandomCheckpointOptions options;
    options.directory = directory_.path();
    options.hidden = 64;
    options.layers = 3;
    options.heads = 8;
    options.kv_heads = 4;
    options.head_size = 16;
    options.mlp = 256;
    options.vocabulary = 256;
    options.block = 4;
    CHECK(WriteRandomCheckpoint(options).ok());
  }

  int Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), directory_.path());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunInspect(arguments);
    out_ = testing::internal::GetCapturedStdout();
    error_ = testing::internal::GetCapturedStderr();
    return code;
  }

  TempDirectory directory_;
  std::string out_, error_;
};

// The network of the golden SDAR checkpoints, whose parameters are published beside them.
TEST_F(InspectTest, CountsParametersBytesAndReductionsOfARank) {
  ASSERT_EQ(Run({"--tensor-parallel-size=2", "--context=100", "--page-size=16", "--json"}), kExitOk) << error_;
  const nlohmann::json json = nlohmann::json::parse(out_);
  EXPECT_EQ(json["family"], "sdar");
  EXPECT_EQ(json["parameters"], 254'496);
  EXPECT_EQ(json["weight_bytes"], 2 * 254'496);
  EXPECT_EQ(json["mask_id"], 255);
  EXPECT_EQ(json["stop_ids"], nlohmann::json({254}));
  EXPECT_EQ(json["block_length"], 4);
  const nlohmann::json& rank = json["rank"];
  EXPECT_EQ(rank["heads"], 4);
  EXPECT_EQ(rank["kv_heads"], 2);
  EXPECT_EQ(rank["kv_bytes_per_token"], 3 * 2 * 2 * 16 * 2);
  EXPECT_EQ(rank["kv_bytes_per_page"], 16 * 3 * 2 * 2 * 16 * 2);
  const int64_t layer_matrices = 64 * (4 + 2 * 2) * 16 + 64 * 4 * 16 + 3 * 64 * 128;
  const int64_t gains = 3 * (2 * 64 + 2 * 16) + 64;
  const int64_t step_weights = 2 * (3 * layer_matrices + 128 * 64) + 4 * gains;
  EXPECT_EQ(rank["weight_bytes"], step_weights + 2 * 256 * 64);
  EXPECT_EQ(json["step"]["rows"], 4);
  EXPECT_EQ(json["step"]["all_reduces"], 6);
  EXPECT_EQ(json["step"]["all_reduce_bytes"], 6 * 4 * 64 * 2);
  EXPECT_EQ(json["step"]["bytes"], step_weights + 100 * 3 * 2 * 2 * 16 * 2);
}

TEST_F(InspectTest, TheFloorIsTheLargerOfBytesAndArithmetic) {
  ASSERT_EQ(Run({"--json", "--memory-bandwidth=0.001", "--peak=1000000"}), kExitOk);
  const nlohmann::json bytes = nlohmann::json::parse(out_);
  EXPECT_NEAR(bytes["step"]["floor_us"].get<double>(), bytes["step"]["bytes"].get<double>() / 1e9 * 1e6, 1e-6);
  ASSERT_EQ(Run({"--json", "--memory-bandwidth=1000", "--peak=0.001"}), kExitOk);
  const nlohmann::json flops = nlohmann::json::parse(out_);
  EXPECT_NEAR(flops["step"]["floor_us"].get<double>(), flops["step"]["flops"].get<double>() / 1e9 * 1e6, 1e-6);
}

TEST_F(InspectTest, PrintsTheFormulaForPeople) {
  ASSERT_EQ(Run({}), kExitOk);
  EXPECT_THAT(out_, AllOf(StartsWith("model        SDARForCausalLM (family sdar), 254496 parameters"),
                          HasSubstr("block-causal, block 4"), HasSubstr("mask 255, stop 254"),
                          HasSubstr("max(bytes / bandwidth, flops / peak)")));
}

TEST_F(InspectTest, AFaultIsOneLineAndTheExitCodeOfModels) {
  EXPECT_EQ(Run({"--tensor-parallel-size=3"}), kExitModel);
  EXPECT_EQ(error_,
            "quicksilver inspect: tensor_parallel_size 3: expected a divisor of the 8 query heads, found "
            "remainder 2\n");
  EXPECT_EQ(out_, "");
  directory_.Write("model.safetensors", directory_.Read("model.safetensors").substr(0, 5000));
  EXPECT_EQ(Run({}), kExitModel);
  EXPECT_THAT(error_, AllOf(StartsWith("quicksilver inspect: " + directory_.PathOf("model.safetensors") + ": "),
                            HasSubstr("is the file truncated?")));
}

TEST_F(InspectTest, BadFlagsAreUsageErrors) {
  EXPECT_EQ(Run({"--page-size=0"}), kExitUsage);
  EXPECT_EQ(Run({"--no-such-flag"}), kExitUsage);
}

TEST_F(InspectTest, TheDigestIsPrintedOnRequest) {
  ASSERT_EQ(Run({"--digest", "--json"}), kExitOk);
  EXPECT_EQ(nlohmann::json::parse(out_)["digest"].get<std::string>().size(), 64u);
}

// Two rows that each choose half of the experts touch three quarters of them on average.
TEST_F(InspectTest, ExpertsAreShownAndOnlyThoseThatAStepTouchesAreRead) {
  PlainSizes sizes = {.vocabulary = 256, .head_norms = true, .block = 4};
  sizes.routing = {.experts = 8, .chosen = 4, .width = 12};
  const nlohmann::json config = {{"architectures", {"SDARMoeForCausalLM"}},
                                 {"hidden_size", sizes.hidden},
                                 {"num_hidden_layers", sizes.layers},
                                 {"num_attention_heads", sizes.heads},
                                 {"num_key_value_heads", sizes.kv_heads},
                                 {"head_dim", sizes.head_size},
                                 {"vocab_size", sizes.vocabulary},
                                 {"max_position_embeddings", 64},
                                 {"num_experts", 8},
                                 {"num_experts_per_tok", 4},
                                 {"moe_intermediate_size", 12},
                                 {"tie_word_embeddings", false}};
  directory_.Write("config.json", config.dump());
  directory_.Write("model.safetensors", PlainSafetensors(StoreNetwork(MakePlainNetwork(sizes, 1), PlainNames::kQwen)));
  ASSERT_EQ(Run({"--mask-id=255", "--expert-parallel", "--tensor-parallel-size=2", "--rows=2", "--json"}), kExitOk)
      << error_;
  const nlohmann::json json = nlohmann::json::parse(out_);
  const nlohmann::json& experts = json["experts"];
  EXPECT_EQ(experts["count"], 8);
  EXPECT_EQ(experts["rank_experts"], 4);
  EXPECT_EQ(experts["rank_mlp"], 12);
  const int64_t rank_bytes = 2 * 4 * 3 * 12 * 32 * 4;
  EXPECT_EQ(experts["rank_bytes"], rank_bytes);
  EXPECT_EQ(experts["step_bytes"], rank_bytes * 3 / 4);
  ASSERT_EQ(Run({"--mask-id=255"}), kExitOk) << error_;
  EXPECT_THAT(out_, HasSubstr("8 of width 12 from layer 0 on, 4 a row by softmax"));
  EXPECT_EQ(Run({"--mask-id=255", "--expert-parallel", "--tensor-parallel-size=4"}), kExitOk) << error_;
  EXPECT_EQ(Run({"--mask-id=255", "--tensor-parallel-size=8"}), kExitModel);
}

class RandomCheckpointTest : public testing::Test {
 protected:
  TempDirectory directory_;
};

TEST_F(RandomCheckpointTest, EqualOptionsGiveEqualBytesAndAnotherSeedOthers) {
  const std::vector<std::string> sizes = {directory_.path(), "--hidden=32", "--layers=1",     "--heads=2",
                                          "--kv-heads=2",    "--mlp=32",    "--head-size=16", "--vocabulary=16"};
  ASSERT_EQ(RunRandomCheckpoint(sizes), kExitOk);
  const std::string first = directory_.Read("model.safetensors");
  ASSERT_EQ(RunRandomCheckpoint(sizes), kExitOk);
  EXPECT_TRUE(directory_.Read("model.safetensors") == first);
  std::vector<std::string> seeded = sizes;
  seeded.push_back("--seed=2");
  ASSERT_EQ(RunRandomCheckpoint(seeded), kExitOk);
  EXPECT_FALSE(directory_.Read("model.safetensors") == first);
}

TEST_F(RandomCheckpointTest, SizesThatMakeNoModelAreUsageErrors) {
  EXPECT_EQ(RunRandomCheckpoint({directory_.path(), "--hidden=0"}), kExitUsage);
  EXPECT_EQ(RunRandomCheckpoint({directory_.path(), "--family=gpt"}), kExitUsage);
  EXPECT_EQ(RunRandomCheckpoint({}), kExitUsage);
}

TEST_F(RandomCheckpointTest, LladaCheckpointsPassInspection) {
  ASSERT_EQ(RunRandomCheckpoint({directory_.path(), "--family=llada", "--hidden=32", "--layers=1", "--heads=2",
                                 "--kv-heads=2", "--mlp=32", "--vocabulary=16", "--dtype=f32", "--shards=2"}),
            kExitOk);
  testing::internal::CaptureStdout();
  EXPECT_EQ(RunInspect({directory_.path()}), kExitOk);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("LLaDAModelLM"));
}

}  // namespace
}  // namespace quicksilver
