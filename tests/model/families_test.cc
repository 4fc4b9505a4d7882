#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/model/plain_network.h"
#include "tests/support/model_group.h"
#include "tests/support/temp_directory.h"

// Families whose published code recorded nothing for us, held to a plain computation of their specification.

namespace quicksilver {
namespace {

// Sums of a few dozen products in float instead of double.
constexpr double kLogitErrorMax = 2e-4;

/// A family's config.json, and the same network in the words of the specification.
struct FamilyCase {
  std::string name;
  nlohmann::json config;
  PlainSizes sizes;
  PlainNames names = PlainNames::kQwen;
  bool shift = false;
};

void PrintTo(const FamilyCase& of, std::ostream* out) { *out << of.name; }

nlohmann::json ConfigOf(const char* architecture, const PlainSizes& s) {
  return {{"architectures", {architecture}},
          {"hidden_size", s.hidden},
          {"num_hidden_layers", s.layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"intermediate_size", s.mlp},
          {"vocab_size", s.vocabulary},
          {"max_position_embeddings", 256},
          {"hidden_act", "silu"},
          {"rms_norm_eps", s.epsilon},
          {"rope_theta", s.theta},
          {"tie_word_embeddings", s.tied},
          {"torch_dtype", "float32"},
          {"mask_token_id", s.vocabulary - 1},
          {"eos_token_id", s.vocabulary - 2}};
}

/// Adds a mixture of experts to both descriptions.
void AddQwenExperts(FamilyCase& made, bool normalise) {
  made.sizes.routing = {.experts = 8, .chosen = 3, .width = 12, .normalise = normalise};
  made.config["num_experts"] = 8;
  made.config["num_experts_per_tok"] = 3;
  made.config["moe_intermediate_size"] = 12;
  made.config["norm_topk_prob"] = normalise;
  made.config["decoder_sparse_step"] = 1;
  made.config["mlp_only_layers"] = nlohmann::json::array();
  made.config["intermediate_size"] = 41;  // Of no layer.
}

FamilyCase Qwen2() {
  FamilyCase made{.name = "qwen2", .sizes = {.theta = 1e6, .qkv_bias = true, .tied = true, .block = 1}, .shift = true};
  made.config = ConfigOf("Qwen2ForCausalLM", made.sizes);
  made.config.erase("mask_token_id");
  return made;
}

FamilyCase Qwen3() {
  FamilyCase made{.name = "qwen3", .sizes = {.head_size = 16, .rotated = 16, .head_norms = true, .block = 1}};
  made.shift = true;
  made.config = ConfigOf("Qwen3ForCausalLM", made.sizes);
  made.config["head_dim"] = 16;
  return made;
}

FamilyCase Qwen3Moe() {
  FamilyCase made = Qwen3();
  made.name = "qwen3_moe";
  made.config["architectures"] = {"Qwen3MoeForCausalLM"};
  AddQwenExperts(made, /*normalise=*/false);
  return made;
}

FamilyCase SdarMoe() {
  FamilyCase made{.name = "sdar_moe", .sizes = {.head_size = 12, .rotated = 12, .head_norms = true, .block = 4}};
  made.config = ConfigOf("SDARMoeForCausalLM", made.sizes);
  made.config["head_dim"] = 12;
  AddQwenExperts(made, /*normalise=*/true);
  return made;
}

FamilyCase FastDllm() {
  FamilyCase made{.name = "fast_dllm", .sizes = {.theta = 1e6, .qkv_bias = true, .tied = true, .block = 8}};
  made.shift = true;
  made.config = ConfigOf("Fast_dLLM_QwenForCausalLM", made.sizes);
  made.config["bd_size"] = 8;
  return made;
}

FamilyCase Dream() {
  FamilyCase made{.name = "dream", .sizes = {.heads = 8, .head_size = 12, .rotated = 12, .qkv_bias = true}};
  made.shift = true;
  made.config = ConfigOf("DreamModel", made.sizes);
  made.config["head_dim"] = 12;
  return made;
}

FamilyCase Illada() {
  FamilyCase made{.name = "illada", .sizes = {.epsilon = 1e-5, .tied = true}};
  made.config = ConfigOf("ILLaDAForCausalLM", made.sizes);
  return made;
}

FamilyCase LladaMoe() {
  FamilyCase made{.name = "llada_moe", .sizes = {.layers = 3, .rotated = 4, .head_norms = true}};
  made.names = PlainNames::kLladaMoe;
  made.sizes.routing = {
      .experts = 6, .chosen = 2, .width = 8, .shared_width = 16, .dense_layers = 1, .bias = true, .weigh_biased = true};
  made.config = ConfigOf("LLaDAMoEModelLM", made.sizes);
  made.config.update({{"model_type", "llada"},
                      {"partial_rotary_factor", 0.5},
                      {"num_experts", 6},
                      {"num_experts_per_tok", 2},
                      {"expert_intermediate_size", 8},
                      {"dense_intermediate_size", made.sizes.mlp},
                      {"shared_expert_intermediate_size", 16},
                      {"moe_layer_freq", {0, 1, 1}},
                      {"moe_router_enable_expert_bias", true},
                      {"norm_topk_prob", nullptr},
                      {"qk_layernorm", true}});
  return made;
}

/// LLaDA2 with its own experts, groups and layers that are dense.
FamilyCase Llada2(const std::string& name, PlainRouting routing) {
  routing.sigmoid = routing.bias = true;
  routing.normalise = routing.chosen > 1;  // As the published code.
  routing.scale = 2.5;
  routing.width = 8;
  FamilyCase made{.name = name, .sizes = {.rotated = 4, .head_norms = true, .block = 4, .routing = routing}};
  made.names = PlainNames::kLlada2;
  made.config = ConfigOf("LLaDA2MoeModelLM", made.sizes);
  made.config.update({{"use_bias", false},
                      {"block_size", 4},
                      {"partial_rotary_factor", 0.5},
                      {"num_experts", routing.experts},
                      {"num_experts_per_tok", routing.chosen},
                      {"moe_intermediate_size", 8},
                      {"num_shared_experts", routing.shared_width / 8},
                      {"first_k_dense_replace", routing.dense_layers},
                      {"n_group", routing.groups},
                      {"topk_group", routing.groups_kept},
                      {"routed_scaling_factor", 2.5},
                      {"moe_router_enable_expert_bias", true}});
  return made;
}

FamilyCase Llada2Stacked() {
  FamilyCase made = Llada2("llada2_stacked", {.experts = 8, .chosen = 3});
  made.names = PlainNames::kLlada2Stacked;
  return made;
}

FamilyCase Llada22() {
  FamilyCase made = Llada2("llada2_2", {.experts = 16, .chosen = 3, .shared_width = 8, .dense_layers = 1, .pooled = 5});
  made.config.update({{"expert_capacity", 5}, {"delete_token_id", 36}, {"split_token_id", 37}, {"n_group", 8}});
  return made;
}

std::vector<FamilyCase> AllCases() {
  return {Qwen2(),
          Qwen3(),
          Qwen3Moe(),
          SdarMoe(),
          FastDllm(),
          Dream(),
          Illada(),
          LladaMoe(),
          Llada2("llada2_groups",
                 {.experts = 12, .chosen = 3, .shared_width = 16, .dense_layers = 1, .groups = 3, .groups_kept = 2}),
          Llada2("llada2_dense_less", {.experts = 8, .chosen = 1}),
          Llada2Stacked(),
          Llada22()};
}

std::vector<TokenId> SomeIds(int32_t count, TokenId vocabulary) {
  std::vector<TokenId> ids(count);
  for (int32_t i = 0; i < count; ++i) ids[i] = (i * 7 + i * i * 3 + 1) % vocabulary;
  return ids;
}

class FamiliesTest : public testing::TestWithParam<FamilyCase> {
 protected:
  FamiliesTest() : network_(MakePlainNetwork(GetParam().sizes, /*seed=*/7)) {
    directory_.Write("config.json", GetParam().config.dump());
    directory_.Write("model.safetensors", PlainSafetensors(StoreNetwork(network_, GetParam().names)));
  }

  absl::StatusOr<std::unique_ptr<ModelGroup>> Load(int ranks, bool fast, const SpecOptions& options = {}) {
    const auto make_ops = [fast] {
      return fast ? MakeCpuOps(DType::kF32, CpuOpsOptions()) : MakeReferenceOps(DType::kF32);
    };
    return ModelGroup::Load(directory_.path(), ranks, make_ops, ModelGroup::Sizes(), options);
  }

  static int32_t BlockOf(const ModelSpec& spec) {
    return spec.grid == BlockGrid::kAfterPrompt ? kBidirectional : spec.block_length;
  }

  TempDirectory directory_;
  const PlainNetwork network_;
  const std::vector<TokenId> ids_ = SomeIds(18, static_cast<TokenId>(GetParam().sizes.vocabulary));
  const TestSegment segment_{ids_, 0, {4, 2, 9}};
};

double ErrorOf(const HostRows& rows, const std::vector<std::vector<double>>& expected) {
  CHECK(rows.rows() == static_cast<int64_t>(expected.size()));
  double error = 0.0;
  for (int64_t row = 0; row < rows.rows(); ++row) {
    for (int64_t id = 0; id < rows.cols; ++id) error = std::max(error, std::abs(rows.row(row)[id] - expected[row][id]));
  }
  return error;
}

// With two KV heads, four ranks hold each of them twice.
TEST_P(FamiliesTest, LogitsAreThoseOfThePlainNetworkHoweverItIsShared) {
  const std::vector<std::vector<double>> expected = PlainLogits(network_, ids_);
  for (const bool fast : {false, true}) {
    for (const int ranks : {1, 2, 4}) {
      const auto group = Load(ranks, fast);
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_LE(ErrorOf((*group)->Logits({segment_}, BlockOf((*group)->spec())), expected), kLogitErrorMax)
          << ranks << " ranks";
    }
  }
}

TEST_P(FamiliesTest, WholeExpertsByRankGiveTheSameLogits) {
  const int64_t experts = GetParam().sizes.routing.experts;
  const std::vector<std::vector<double>> expected = PlainLogits(network_, ids_);
  for (const int ranks : {1, 2, 4}) {
    const auto group = Load(ranks, /*fast=*/true, {.expert_parallel = true});
    if (experts == 0) {
      EXPECT_THAT(std::string(group.status().message()), testing::HasSubstr("'num_experts': expected experts"));
    } else if (experts % ranks != 0) {
      EXPECT_THAT(std::string(group.status().message()),
                  testing::HasSubstr("tensor_parallel_size 4: expected a divisor of the 6 experts (num_experts"));
    } else {
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_LE(ErrorOf((*group)->Logits({segment_}, BlockOf((*group)->spec())), expected), kLogitErrorMax) << ranks;
    }
  }
}

TEST_P(FamiliesTest, TheSpecSaysHowItsTokensArePredicted) {
  const auto group = Load(1, /*fast=*/false);
  ASSERT_TRUE(group.ok()) << group.status();
  const ModelSpec& spec = (*group)->spec();
  EXPECT_EQ(spec.shift, GetParam().shift);
  EXPECT_EQ(spec.grid, GetParam().sizes.block == 0 ? BlockGrid::kAfterPrompt : BlockGrid::kAbsolute);
  EXPECT_EQ(spec.block_length, GetParam().sizes.block > 0 ? GetParam().sizes.block : 32);
  EXPECT_EQ(spec.mask_id, spec.family == "qwen" ? -1 : GetParam().sizes.vocabulary - 1);
}

// Rows of a pool are those of one sequence's block: what else is in the batch must not matter.
TEST_P(FamiliesTest, NeighboursInABatchLeaveNoTrace) {
  const auto group = Load(2, /*fast=*/true);
  ASSERT_TRUE(group.ok()) << group.status();
  const int32_t block = BlockOf((*group)->spec());
  const HostRows alone = (*group)->Logits({segment_}, block);
  const TestSegment other{SomeIds(13, 30), 0, {20, 21}};
  const HostRows both = (*group)->Logits({other, segment_}, block);
  const std::vector<float> behind(both.row(13), both.row(13) + alone.values.size());
  EXPECT_TRUE(behind == alone.values);
}

// However a prompt was cut: pools, too, are of whole blocks.
TEST_P(FamiliesTest, PrefillInChunksGivesTheBitsOfOneForward) {
  const auto group = Load(2, /*fast=*/true);
  ASSERT_TRUE(group.ok()) << group.status();
  const int32_t block = BlockOf((*group)->spec());
  if (block == kBidirectional) return;  // Has no exact cache.
  const HostRows whole = (*group)->Logits({segment_}, block);
  for (int32_t done = 0; done < static_cast<int32_t>(ids_.size()); done += 8) {
    const int32_t rows = std::min<int32_t>(8, static_cast<int32_t>(ids_.size()) - done);
    const TestSegment chunk{{ids_.begin() + done, ids_.begin() + done + rows}, done, {5, 6, 7}};
    const std::vector<float> expected(whole.row(done), whole.row(done) + rows * whole.cols);
    EXPECT_TRUE((*group)->Logits({chunk}, block).values == expected) << "rows from " << done << " on";
  }
}

TEST_P(FamiliesTest, AnExpertOfAnotherShapeIsNamedWithBoth) {
  if (GetParam().sizes.routing.experts == 0) return;
  nlohmann::json config = GetParam().config;
  const char* const field =
      config.contains("expert_intermediate_size") ? "expert_intermediate_size" : "moe_intermediate_size";
  config[field] = config[field].get<int64_t>() * 2;
  config.erase("num_shared_experts");
  config.erase("shared_expert_intermediate_size");
  directory_.Write("config.json", config.dump());
  const std::string error(Load(1, /*fast=*/false).status().message());
  EXPECT_THAT(error, testing::AllOf(testing::HasSubstr("model.safetensors: tensor 'model.layers."),
                                    testing::HasSubstr(".mlp.experts."), testing::HasSubstr("gate_proj"),
                                    testing::HasSubstr("expected F32 ["), testing::HasSubstr("found F32 [")));
}

INSTANTIATE_TEST_SUITE_P(Families, FamiliesTest, testing::ValuesIn(AllCases()),
                         [](const testing::TestParamInfo<FamilyCase>& of) { return of.param.name; });

}  // namespace
}  // namespace quicksilver
