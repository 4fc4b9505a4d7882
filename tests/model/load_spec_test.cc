#include "worker/model/load_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/temp_directory.h"

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

nlohmann::json Sdar() {
  return nlohmann::json::parse(R"({"architectures": ["SDARForCausalLM"], "model_type": "sdar", "attention_bias": false,
    "head_dim": 16, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": 512,
    "num_attention_heads": 8, "num_hidden_layers": 3, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 256, "mask_token_id": 250,
    "eos_token_id": 249})");
}

nlohmann::json Llada() {
  return nlohmann::json::parse(R"({"architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu",
    "alibi": false, "attention_layer_norm": false, "bias_for_layer_norm": false, "block_group_size": 1,
    "block_type": "llama", "d_model": 128, "embedding_size": 256, "eos_token_id": 249, "include_bias": false,
    "include_qkv_bias": false, "input_emb_norm": false, "layer_norm_type": "rms", "layer_norm_with_affine": true,
    "mask_token_id": 250, "max_sequence_length": 4096, "mlp_hidden_size": 192, "mlp_ratio": 4,
    "multi_query_attention": null, "n_heads": 8, "n_kv_heads": 8, "n_layers": 3, "rms_norm_eps": 1e-05, "rope": true,
    "rope_full_precision": true, "rope_theta": 500000.0, "scale_logits": false, "vocab_size": 256,
    "weight_tying": false})");
}

class LoadSpecTest : public testing::Test {
 protected:
  LoadSpecTest() { WriteWeights("BF16"); }

  // The spec needs of the tensors only that they are there, and their type.
  void WriteWeights(const std::string& dtype, bool lm_head = true) {
    const std::string end = R"(","shape":[1],"data_offsets":)";
    const std::string embedding = R"("model.embed_tokens.weight":{"dtype":")" + dtype + end + "[0,2]}";
    const std::string llada = R"("model.transformer.wte.weight":{"dtype":")" + dtype + end + "[2,4]}";
    const std::string head = R"("lm_head.weight":{"dtype":")" + dtype + end + "[4,6]}";
    directory_.Write(
        "model.safetensors",
        SafetensorsBytes("{" + embedding + "," + llada + (lm_head ? "," + head : "") + "}", lm_head ? 6 : 4));
  }
  absl::StatusOr<ModelSpec> Load(const nlohmann::json& config, const SpecOptions& options = {}) {
    directory_.Write("config.json", config.dump());
    const auto checkpoint = Checkpoint::Open(directory_.path());
    CHECK(checkpoint.ok());
    return LoadModelSpec(**checkpoint, options);
  }
  std::string ErrorOf(const nlohmann::json& config, const SpecOptions& options = {}) {
    const absl::Status status = Load(config, options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
    return std::string(status.message());
  }
  ModelSpec SpecOf(const nlohmann::json& config, const SpecOptions& options = {}) {
    const absl::StatusOr<ModelSpec> spec = Load(config, options);
    EXPECT_TRUE(spec.ok()) << spec.status();
    return spec.value_or(ModelSpec());
  }

  TempDirectory directory_;
};

TEST_F(LoadSpecTest, ReadsSdar) {
  const ModelSpec spec = SpecOf(Sdar());
  EXPECT_EQ(spec.family, "sdar");
  EXPECT_EQ(spec.hidden, 64);
  EXPECT_EQ(spec.layers, 3);
  EXPECT_EQ(spec.heads, 8);
  EXPECT_EQ(spec.kv_heads, 4);
  EXPECT_EQ(spec.head_size, 16);
  EXPECT_EQ(spec.mlp, 256);
  EXPECT_EQ(spec.vocabulary, 256);
  EXPECT_EQ(spec.tokens, 256);
  EXPECT_EQ(spec.positions_max, 512);
  EXPECT_FLOAT_EQ(spec.norm_epsilon, 1e-6f);
  EXPECT_EQ(spec.rope_theta, 1e6);
  EXPECT_FALSE(spec.rope_full_precision);
  EXPECT_TRUE(spec.head_norms);
  EXPECT_FALSE(spec.tied);
  EXPECT_EQ(spec.checkpoint_dtype, DType::kBf16);
  EXPECT_EQ(spec.grid, BlockGrid::kAbsolute);
  EXPECT_EQ(spec.block_length, 4);
  EXPECT_EQ(spec.mask_id, 250);
  EXPECT_THAT(spec.stop_ids, ElementsAre(249));
}

TEST_F(LoadSpecTest, ReadsLlada) {
  const ModelSpec spec = SpecOf(Llada());
  EXPECT_EQ(spec.family, "llada");
  EXPECT_EQ(spec.hidden, 128);
  EXPECT_EQ(spec.head_size, 16);
  EXPECT_EQ(spec.mlp, 192);
  EXPECT_EQ(spec.positions_max, 4096);
  EXPECT_EQ(spec.rope_theta, 5e5);
  EXPECT_TRUE(spec.rope_full_precision);
  EXPECT_FALSE(spec.head_norms);
  EXPECT_EQ(spec.grid, BlockGrid::kAfterPrompt);
  EXPECT_THAT(spec.stop_ids, ElementsAre(249));
}

TEST_F(LoadSpecTest, LladaFieldsThatAreAbsentFollowThePublishedClass) {
  nlohmann::json config = Llada();
  config["n_kv_heads"] = nullptr;
  config["multi_query_attention"] = true;
  config["mlp_hidden_size"] = nullptr;
  config["embedding_size"] = 320;
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(spec.kv_heads, 1);
  EXPECT_EQ(spec.mlp, 4 * 128);
  EXPECT_EQ(spec.vocabulary, 320);
  EXPECT_EQ(spec.tokens, 256);
  config["multi_query_attention"] = nullptr;
  EXPECT_EQ(SpecOf(config).kv_heads, 8);
}

TEST_F(LoadSpecTest, AnUnknownArchitectureIsRefusedWithTheSupportedOnes) {
  nlohmann::json config = Sdar();
  config["architectures"] = {"GPT2LMHeadModel"};
  EXPECT_THAT(ErrorOf(config), AllOf(HasSubstr("config.json: field 'architectures'"), HasSubstr("SDARForCausalLM"),
                                     HasSubstr("LLaDAModelLM"), HasSubstr("found GPT2LMHeadModel")));
  config["architectures"] = nlohmann::json::array();
  EXPECT_THAT(ErrorOf(config), HasSubstr("found []"));
  config.erase("architectures");
  EXPECT_THAT(ErrorOf(config), HasSubstr("found none"));
}

struct Unsupported {
  const char* family;
  const char* field;
  const char* value;
};

class UnsupportedFieldTest : public LoadSpecTest, public testing::WithParamInterface<Unsupported> {};

TEST_P(UnsupportedFieldTest, IsRefusedByNameWithBothValues) {
  nlohmann::json config = std::string(GetParam().family) == "sdar" ? Sdar() : Llada();
  config[GetParam().field] = nlohmann::json::parse(GetParam().value);
  const std::string error = ErrorOf(config);
  EXPECT_THAT(error, AllOf(HasSubstr(directory_.PathOf("config.json")), HasSubstr(GetParam().field),
                           HasSubstr("expected "), HasSubstr("found ")));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, UnsupportedFieldTest,
    testing::Values(Unsupported{"sdar", "hidden_act", "\"gelu\""}, Unsupported{"sdar", "attention_bias", "true"},
                    Unsupported{"sdar", "rope_scaling", R"({"type":"yarn"})"},
                    Unsupported{"sdar", "use_sliding_window", "true"}, Unsupported{"sdar", "num_experts", "8"},
                    Unsupported{"sdar", "quantization_config", R"({"bits":4})"},
                    Unsupported{"sdar", "partial_rotary_factor", "1.5"},
                    Unsupported{"sdar", "layer_types", R"(["sliding_attention"])"},
                    Unsupported{"sdar", "rope_parameters", R"({"rope_type":"yarn","rope_theta":1})"},
                    Unsupported{"sdar", "hidden_size", "0"}, Unsupported{"sdar", "hidden_size", "-64"},
                    Unsupported{"sdar", "hidden_size", "64.5"}, Unsupported{"sdar", "hidden_size", "\"64\""},
                    Unsupported{"sdar", "hidden_size", "99999999999"}, Unsupported{"sdar", "hidden_size", "null"},
                    Unsupported{"sdar", "num_key_value_heads", "3"}, Unsupported{"sdar", "head_dim", "15"},
                    Unsupported{"sdar", "rms_norm_eps", "0"}, Unsupported{"sdar", "rope_theta", "\"big\""},
                    Unsupported{"sdar", "tie_word_embeddings", "1"}, Unsupported{"sdar", "block_size", "257"},
                    Unsupported{"sdar", "mask_token_id", "256"}, Unsupported{"sdar", "mask_token_id", "-1"},
                    Unsupported{"sdar", "mask_token_id", "null"}, Unsupported{"sdar", "eos_token_id", "[249, 300]"},
                    Unsupported{"sdar", "eos_token_id", "250"}, Unsupported{"sdar", "eos_token_id", "\"x\""},
                    Unsupported{"llada", "alibi", "true"}, Unsupported{"llada", "rope", "false"},
                    Unsupported{"llada", "include_bias", "true"}, Unsupported{"llada", "include_qkv_bias", "true"},
                    Unsupported{"llada", "activation_type", "\"swiglu\""},
                    Unsupported{"llada", "layer_norm_type", "\"default\""},
                    Unsupported{"llada", "attention_layer_norm", "true"}, Unsupported{"llada", "block_group_size", "2"},
                    Unsupported{"llada", "block_type", "\"sequential\""}, Unsupported{"llada", "scale_logits", "true"},
                    Unsupported{"llada", "input_emb_norm", "true"}, Unsupported{"llada", "bias_for_layer_norm", "true"},
                    Unsupported{"llada", "n_heads", "7"}, Unsupported{"llada", "embedding_size", "128"}));

TEST_F(LoadSpecTest, AFieldWhoseAbsenceMeansSomethingElseMustBeStated) {
  nlohmann::json config = Llada();
  config.erase("include_bias");
  EXPECT_THAT(ErrorOf(config), HasSubstr("field 'include_bias': expected false (all that is supported), found none, "
                                         "which means true"));
}

TEST_F(LoadSpecTest, TheMaskComesFromTheTokenizerWhenTheConfigIsSilent) {
  nlohmann::json config = Sdar();
  config.erase("mask_token_id");
  EXPECT_THAT(ErrorOf(config), HasSubstr("<|MASK|> in tokenizer.json"));
  directory_.Write("tokenizer.json", R"({"added_tokens":[{"id":7,"content":"<|im_end|>"},{"content":"<|MASK|>","id":9}],
                                         "model":{"type":"BPE","vocab":{"a":0,"b":11},"merges":[["a","b"]]}})");
  const ModelSpec spec = SpecOf([&] {
    config["eos_token_id"] = 8;
    return config;
  }());
  EXPECT_EQ(spec.mask_id, 9);
  EXPECT_THAT(spec.stop_ids, ElementsAre(7, 8));
  EXPECT_EQ(spec.eos_id, 8) << "the config's, not the smallest";
  EXPECT_EQ(spec.tokens, 12) << "rows of the table that no token has are padding";
}

TEST_F(LoadSpecTest, ConfigAndTokenizerMustAgreeOnTheMask) {
  directory_.Write("tokenizer.json", R"({"added_tokens":[{"id":251,"content":"<|MASK|>"}]})");
  EXPECT_THAT(ErrorOf(Sdar()), HasSubstr("'mask_token_id': expected 251 as <|MASK|> in tokenizer.json, found 250"));
}

TEST_F(LoadSpecTest, ATokenizerWithMoreIdsThanTheTableIsRefused) {
  directory_.Write("tokenizer.json", R"({"model":{"vocab":{"a":256}}})");
  EXPECT_THAT(ErrorOf(Sdar()), HasSubstr("'vocab_size': expected at least 257"));
  directory_.Write("tokenizer.json", R"({"model":{"vocab":{"a":-5}}})");
  EXPECT_THAT(ErrorOf(Sdar()), HasSubstr("tokenizer.json: expected a token id"));
  directory_.Write("tokenizer.json", "{\"model\":");
  EXPECT_THAT(ErrorOf(Sdar()), HasSubstr("tokenizer.json: expected JSON"));
}

TEST_F(LoadSpecTest, OnlyThePublishedVocabularyHasDefaultTokens) {
  nlohmann::json config = Sdar();
  config.erase("mask_token_id");
  config.erase("eos_token_id");
  config["vocab_size"] = 151936;
  const ModelSpec sdar = SpecOf(config);
  EXPECT_EQ(sdar.mask_id, 151669);
  EXPECT_THAT(sdar.stop_ids, ElementsAre(151643, 151645));
  config = Llada();
  config.erase("mask_token_id");
  config.erase("eos_token_id");
  config["vocab_size"] = config["embedding_size"] = 126464;
  const ModelSpec llada = SpecOf(config);
  EXPECT_EQ(llada.mask_id, 126336);
  EXPECT_THAT(llada.stop_ids, ElementsAre(126081, 126348));
  config["vocab_size"] = config["embedding_size"] = 256;
  config["mask_token_id"] = 250;
  EXPECT_EQ(llada.eos_id, 126081);
  EXPECT_THAT(SpecOf(config).stop_ids, IsEmpty());
  EXPECT_EQ(SpecOf(config).eos_id, -1);
}

TEST_F(LoadSpecTest, StopTokensOfBothConfigsAreJoined) {
  directory_.Write("generation_config.json", R"({"eos_token_id":[240,249,3]})");
  EXPECT_THAT(SpecOf(Sdar()).stop_ids, ElementsAre(3, 240, 249));
  directory_.Write("generation_config.json", "{");
  EXPECT_THAT(ErrorOf(Sdar()), HasSubstr("generation_config.json: expected JSON"));
}

TEST_F(LoadSpecTest, TheBlockIsTheOptionsThenTheConfigsThenFour) {
  nlohmann::json config = Sdar();
  EXPECT_EQ(SpecOf(config).block_length, 4);
  config["block_size"] = 16;
  EXPECT_EQ(SpecOf(config).block_length, 16);
  EXPECT_EQ(SpecOf(config, {.block_length = 32}).block_length, 32);
  EXPECT_THAT(ErrorOf(config, {.block_length = 257}), HasSubstr("expected 1 to 256, found 257"));
}

TEST_F(LoadSpecTest, TheHeadIsTiedWhenTheConfigIsSilentAndTheCheckpointHasNone) {
  nlohmann::json config = Sdar();
  config.erase("tie_word_embeddings");
  EXPECT_FALSE(SpecOf(config).tied);
  WriteWeights("BF16", /*lm_head=*/false);
  EXPECT_TRUE(SpecOf(config).tied);
}

TEST_F(LoadSpecTest, NewerRopeParametersAreRead) {
  nlohmann::json config = Sdar();
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 12345.0}};
  EXPECT_EQ(SpecOf(config).rope_theta, 12345.0);
  EXPECT_EQ(SpecOf(config).rotary_size, 0);
  config["rope_parameters"]["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(SpecOf(config).rotary_size, 8);
}

// The bytes would load and mean other numbers.
TEST_F(LoadSpecTest, TheOther16BitTypeThanTheConfigStatesIsRefused) {
  WriteWeights("F16");
  EXPECT_THAT(ErrorOf(Sdar()), AllOf(HasSubstr("model.safetensors: tensor 'model.embed_tokens.weight'"),
                                     HasSubstr("(bfloat16), found F16")));
  nlohmann::json config = Sdar();
  config["torch_dtype"] = "float16";
  EXPECT_EQ(SpecOf(config).checkpoint_dtype, DType::kF32);
}

TEST_F(LoadSpecTest, AMalformedConfigIsRefused) {
  for (const char* text : {"", "[]", "{", R"({"architectures":["SDARForCausalLM"],"architectures":[]})"}) {
    directory_.Write("config.json", text);
    const auto checkpoint = Checkpoint::Open(directory_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_THAT(std::string(LoadModelSpec(**checkpoint).status().message()), HasSubstr("config.json: expected"));
  }
}

}  // namespace
}  // namespace quicksilver
