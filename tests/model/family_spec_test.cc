// What the published config.json of each family says, and what is refused in it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "common/check.h"
#include "tests/support/temp_directory.h"
#include "worker/model/load_spec.h"

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// The fields that the Qwen-like families share, with Dream's numbers.
nlohmann::json QwenLike(const char* architecture) {
  return {{"architectures", {architecture}},
          {"hidden_size", 3584},
          {"intermediate_size", 18944},
          {"num_hidden_layers", 28},
          {"num_attention_heads", 28},
          {"num_key_value_heads", 4},
          {"vocab_size", 152064},
          {"rope_theta", 1000000.0},
          {"rms_norm_eps", 1e-6},
          {"max_position_embeddings", 131072},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"}};
}

nlohmann::json Llada2Mini() {
  nlohmann::json config = QwenLike("LLaDA2MoeModelLM");
  config.update({{"hidden_size", 2048},
                 {"intermediate_size", 5120},
                 {"num_hidden_layers", 20},
                 {"num_attention_heads", 16},
                 {"head_dim", 128},
                 {"vocab_size", 157184},
                 {"rope_theta", 600000},
                 {"partial_rotary_factor", 0.5},
                 {"first_k_dense_replace", 1},
                 {"moe_intermediate_size", 512},
                 {"num_experts", 256},
                 {"num_experts_per_tok", 8},
                 {"num_shared_experts", 1},
                 {"n_group", 8},
                 {"topk_group", 4},
                 {"routed_scaling_factor", 2.5},
                 {"score_function", "sigmoid"},
                 {"router_dtype", "fp32"},
                 {"moe_router_enable_expert_bias", true},
                 {"use_bias", false}});
  return config;
}

nlohmann::json Llada22() {
  nlohmann::json config = Llada2Mini();
  config.update({{"expert_capacity", 48}, {"block_size", 32}, {"delete_token_id", 156930}, {"split_token_id", 156931}});
  return config;
}

nlohmann::json LladaMoe() {
  nlohmann::json config = QwenLike("LLaDAMoEModelLM");
  config.update({{"model_type", "llada"},
                 {"hidden_size", 2048},
                 {"num_hidden_layers", 16},
                 {"num_attention_heads", 16},
                 {"num_key_value_heads", 16},
                 {"vocab_size", 157184},
                 {"rope_theta", 50000},
                 {"num_experts", 64},
                 {"num_experts_per_tok", 8},
                 {"expert_intermediate_size", 1024},
                 {"dense_intermediate_size", 8192},
                 {"qk_layernorm", true},
                 {"norm_topk_prob", false},
                 {"routed_scaling_factor", 1},
                 {"partial_rotary_factor", 1}});
  return config;
}

nlohmann::json Illada() {
  nlohmann::json config = QwenLike("ILLaDAForCausalLM");
  config.update({{"hidden_size", 4096},
                 {"num_attention_heads", 32},
                 {"num_key_value_heads", 8},
                 {"vocab_size", 155136},
                 {"tie_word_embeddings", true}});
  return config;
}

nlohmann::json SdarMoe() {
  nlohmann::json config = QwenLike("SDARMoeForCausalLM");
  config.update({{"hidden_size", 2048},
                 {"num_attention_heads", 32},
                 {"head_dim", 128},
                 {"vocab_size", 151936},
                 {"num_experts", 128},
                 {"num_experts_per_tok", 8},
                 {"moe_intermediate_size", 768},
                 {"norm_topk_prob", true}});
  return config;
}

class FamilySpecTest : public testing::Test {
 protected:
  FamilySpecTest() {
    const std::string end = R"(","shape":[1],"data_offsets":)";
    directory_.Write("model.safetensors",
                     SafetensorsBytes(R"({"model.embed_tokens.weight":{"dtype":"BF16)" + end + "[0,2]}," +
                                          R"("model.word_embeddings.weight":{"dtype":"BF16)" + end + "[2,4]}," +
                                          R"("lm_head.weight":{"dtype":"BF16)" + end + "[4,6]}}",
                                      6));
  }
  absl::StatusOr<ModelSpec> Load(const nlohmann::json& config, const SpecOptions& options = {}) {
    directory_.Write("config.json", config.dump());
    const auto checkpoint = Checkpoint::Open(directory_.path());
    CHECK(checkpoint.ok());
    return LoadModelSpec(**checkpoint, options);
  }
  ModelSpec SpecOf(const nlohmann::json& config, const SpecOptions& options = {}) {
    const absl::StatusOr<ModelSpec> spec = Load(config, options);
    EXPECT_TRUE(spec.ok()) << spec.status();
    return spec.value_or(ModelSpec());
  }
  std::string ErrorOf(const nlohmann::json& config, const SpecOptions& options = {}) {
    return std::string(Load(config, options).status().message());
  }

  TempDirectory directory_;
};

TEST_F(FamilySpecTest, DreamPredictsTheNextPositionWithBiasedHeads) {
  const ModelSpec spec = SpecOf(QwenLike("DreamModel"));
  EXPECT_EQ(spec.family, "dream");
  EXPECT_EQ(spec.head_size, 128);
  EXPECT_TRUE(spec.qkv_bias);
  EXPECT_FALSE(spec.head_norms);
  EXPECT_TRUE(spec.shift);
  EXPECT_EQ(spec.grid, BlockGrid::kAfterPrompt);
  EXPECT_EQ(spec.mask_id, 151666);
  EXPECT_THAT(spec.stop_ids, ElementsAre(151643, 151645));
}

TEST_F(FamilySpecTest, FastDllmStatesItsBlockUnderItsOwnName) {
  nlohmann::json config = QwenLike("Fast_dLLM_QwenForCausalLM");
  EXPECT_EQ(SpecOf(config).block_length, 32);
  config["bd_size"] = 16;
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(spec.family, "fast_dllm");
  EXPECT_EQ(spec.block_length, 16);
  EXPECT_EQ(spec.grid, BlockGrid::kAbsolute);
  EXPECT_TRUE(spec.shift);
  EXPECT_TRUE(spec.qkv_bias);
  EXPECT_EQ(spec.mask_id, 151665);
}

TEST_F(FamilySpecTest, PlainQwenIsCausalAndHasNoMask) {
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    const ModelSpec spec = SpecOf(QwenLike(architecture));
    EXPECT_EQ(spec.family, "qwen");
    EXPECT_EQ(spec.block_length, 1);
    EXPECT_TRUE(spec.shift);
    EXPECT_EQ(spec.mask_id, -1);
    EXPECT_EQ(spec.qkv_bias, std::string(architecture) == "Qwen2ForCausalLM");
    EXPECT_EQ(spec.head_norms, std::string(architecture) == "Qwen3ForCausalLM");
  }
}

TEST_F(FamilySpecTest, IlladaMustStateWhatWasNotPublished) {
  const ModelSpec spec = SpecOf(Illada());
  EXPECT_EQ(spec.family, "llada");
  EXPECT_EQ(spec.mask_id, 5);
  EXPECT_THAT(spec.stop_ids, ElementsAre(2));
  EXPECT_TRUE(spec.tied);
  EXPECT_EQ(spec.grid, BlockGrid::kAfterPrompt);
  for (const char* field : {"rope_theta", "rms_norm_eps"}) {
    nlohmann::json config = Illada();
    config.erase(field);
    EXPECT_THAT(ErrorOf(config), AllOf(HasSubstr(field), HasSubstr("found none")));
  }
}

TEST_F(FamilySpecTest, SdarWithExpertsDividesTheirWeightsBySum) {
  const ModelSpec spec = SpecOf(SdarMoe());
  EXPECT_EQ(spec.family, "sdar");
  EXPECT_EQ(spec.mlp, 0) << "no layer is dense";
  EXPECT_EQ(spec.moe.experts, 128);
  EXPECT_EQ(spec.moe.mlp, 768);
  EXPECT_EQ(spec.moe.routing.chosen, 8);
  EXPECT_TRUE(spec.moe.routing.normalise);
  EXPECT_TRUE(spec.moe.routing.round_weights);
  EXPECT_FALSE(spec.moe.float_router);
  EXPECT_EQ(spec.block_length, 4);
}

TEST_F(FamilySpecTest, LladaMoeIsToldFromLladaByItsArchitecture) {
  const ModelSpec spec = SpecOf(LladaMoe());
  EXPECT_EQ(spec.family, "llada_moe");
  EXPECT_TRUE(spec.head_norms);
  EXPECT_EQ(spec.moe.experts, 64);
  EXPECT_EQ(spec.moe.mlp, 1024);
  EXPECT_FALSE(spec.moe.routing.normalise);
  EXPECT_FALSE(spec.moe.expert_bias);
  EXPECT_EQ(spec.rotary_size, 0);
  EXPECT_EQ(spec.mask_id, 156895);
  EXPECT_EQ(spec.mlp, 0);
}

TEST_F(FamilySpecTest, Llada2RoutesByGroups) {
  const ModelSpec spec = SpecOf(Llada2Mini());
  EXPECT_EQ(spec.family, "llada2");
  EXPECT_EQ(spec.mlp, 5120);
  EXPECT_EQ(spec.rotary_size, 64);
  EXPECT_TRUE(spec.head_norms);
  EXPECT_EQ(spec.block_length, 32);
  EXPECT_FALSE(spec.shift);
  EXPECT_EQ(spec.moe.first_layer, 1);
  EXPECT_EQ(spec.moe.shared_mlp, 512);
  EXPECT_TRUE(spec.moe.expert_bias);
  EXPECT_TRUE(spec.moe.float_router);
  EXPECT_EQ(spec.moe.routing.score, RoutingRule::Score::kSigmoid);
  EXPECT_EQ(spec.moe.routing.groups, 8);
  EXPECT_EQ(spec.moe.routing.groups_kept, 4);
  EXPECT_FLOAT_EQ(spec.moe.routing.scale, 2.5f);
  EXPECT_TRUE(spec.moe.routing.normalise);
  EXPECT_EQ(spec.moe.routing.pool_block, 0);
  EXPECT_EQ(spec.delete_id, -1);
}

TEST_F(FamilySpecTest, Llada22RoutesByPoolsOfOneBlockInstead) {
  const ModelSpec spec = SpecOf(Llada22());
  EXPECT_EQ(spec.moe.routing.groups, 0);
  EXPECT_EQ(spec.moe.routing.pool_block, 32);
  EXPECT_EQ(spec.moe.routing.pool_experts, 48);
  EXPECT_EQ(spec.delete_id, 156930);
  EXPECT_EQ(spec.insert_id, 156931);
  EXPECT_THAT(ErrorOf(Llada22(), {.block_length = 16}),
              HasSubstr("'block_size': expected the block length (16), for experts of one block, found 32"));
}

TEST_F(FamilySpecTest, TheMaskMayBeGivenWhereTheCheckpointIsSilent) {
  nlohmann::json config = Llada2Mini();
  config["vocab_size"] = 256;
  EXPECT_THAT(ErrorOf(config), HasSubstr("'mask_token_id': expected an id, here, as <|mask|> in tokenizer.json or by "
                                         "--mask-id, found none"));
  EXPECT_EQ(SpecOf(config, {.mask_id = 250}).mask_id, 250);
  EXPECT_THAT(ErrorOf(config, {.mask_id = 256}), HasSubstr("expected an id below 256, found 256"));
  config["mask_token_id"] = 251;
  EXPECT_THAT(ErrorOf(config, {.mask_id = 250}), HasSubstr("expected 250 as --mask-id, found 251"));
}

TEST_F(FamilySpecTest, ExpertsByRankNeedExperts) {
  EXPECT_TRUE(SpecOf(LladaMoe(), {.expert_parallel = true}).moe.expert_parallel);
  EXPECT_THAT(ErrorOf(QwenLike("DreamModel"), {.expert_parallel = true}),
              HasSubstr("'num_experts': expected experts, for --expert-parallel, found none"));
}

struct Refused {
  nlohmann::json (*config)();
  const char* field;
  const char* value;
};

class RefusedFieldTest : public FamilySpecTest, public testing::WithParamInterface<Refused> {};

TEST_P(RefusedFieldTest, NamesTheFieldAndBothValues) {
  nlohmann::json config = GetParam().config();
  config[GetParam().field] = nlohmann::json::parse(GetParam().value);
  EXPECT_THAT(ErrorOf(config), AllOf(HasSubstr("config.json: field '" + std::string(GetParam().field) + "'"),
                                     HasSubstr("expected "), HasSubstr("found ")));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, RefusedFieldTest,
    testing::Values(Refused{Llada2Mini, "use_bias", "true"}, Refused{Llada2Mini, "use_qkv_bias", "true"},
                    Refused{Llada2Mini, "score_function", "\"softmax\""},
                    Refused{Llada2Mini, "norm_topk_prob", "false"}, Refused{Llada2Mini, "router_dtype", "\"bf16\""},
                    Refused{Llada2Mini, "rope_scaling", R"({"type":"yarn"})"}, Refused{Llada2Mini, "n_group", "7"},
                    Refused{Llada2Mini, "n_group", "256"}, Refused{Llada2Mini, "topk_group", "9"},
                    Refused{Llada2Mini, "num_experts_per_tok", "0"}, Refused{Llada2Mini, "num_experts_per_tok", "257"},
                    Refused{Llada2Mini, "num_experts", "0"}, Refused{Llada2Mini, "num_experts", "2048"},
                    Refused{Llada2Mini, "first_k_dense_replace", "21"},
                    Refused{Llada2Mini, "first_k_dense_replace", "-1"},
                    Refused{Llada2Mini, "partial_rotary_factor", "0.01"}, Refused{Llada2Mini, "rotary_dim", "32"},
                    Refused{Llada2Mini, "moe_intermediate_size", "0"},
                    Refused{Llada2Mini, "routed_scaling_factor", "0"}, Refused{Llada22, "expert_capacity", "7"},
                    Refused{Llada22, "expert_capacity", "257"}, Refused{Llada22, "delete_token_id", "157184"},
                    Refused{Llada22, "delete_token_id", "156895"}, Refused{Llada22, "split_token_id", "156930"},
                    Refused{LladaMoe, "moe_layer_freq", "[1]"}, Refused{LladaMoe, "norm_topk_prob", "true"},
                    Refused{LladaMoe, "moe_router_score_function", "\"sigmoid\""}, Refused{LladaMoe, "clip_qkv", "3.0"},
                    Refused{LladaMoe, "attention_bias", "true"}, Refused{SdarMoe, "decoder_sparse_step", "2"},
                    Refused{SdarMoe, "mlp_only_layers", "[0]"}, Refused{Illada, "attention_bias", "true"}));

}  // namespace
}  // namespace quicksilver
