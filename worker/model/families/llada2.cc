#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// LLaDA2.0, 2.1 and 2.2 (models.md §4): grouped heads out of one fused projection, partial rotation, dense first
// layers, sigmoid routing with a shared expert, under a block-causal mask. 2.2 routes by pools of one block and has
// control tokens.

namespace quicksilver {
namespace {

const std::vector<SupportedField>& SupportedFields() {
  static const std::vector<SupportedField> fields = {
      {"use_bias", "true", {"false"}},
      {"use_qkv_bias", "false", {"false"}},
      {"use_rmsnorm", "true", {"true"}},
      {"using_split_qkv_in_self_attention", "false", {"false"}},
      {"norm_head", "false", {"false"}},
      {"norm_softmax", "false", {"false"}},
      {"norm_topk_prob", "true", {"true"}},
      {"score_function", "\"sigmoid\"", {"\"sigmoid\""}},
      {"router_dtype", "\"fp32\"", {"\"fp32\"", "\"float32\""}},
  };
  return fields;
}

absl::Status CheckRotation(const ConfigFields& config, const ModelSpec& spec) {
  const int64_t rotated = spec.rotary_size > 0 ? spec.rotary_size : spec.head_size;
  ASSIGN_OR_RETURN(const int64_t stated, config.Size("rotary_dim", kHeadSizeMax, rotated));
  if (stated == rotated) return absl::OkStatus();
  return config.Error("rotary_dim", absl::StrCat(rotated, " as partial_rotary_factor says"), absl::StrCat(stated));
}

/// 2.0 and 2.1: only the best groups of experts are admitted.
absl::Status ReadGroups(const ConfigFields& config, ModelSpec& spec) {
  const int64_t experts = spec.moe.experts, chosen = spec.moe.routing.chosen;
  ASSIGN_OR_RETURN(const int64_t groups, config.Count("n_group", experts, 8));
  if (groups <= 1) return absl::OkStatus();
  if (experts % groups != 0 || experts / groups < 2) {
    return config.Error("n_group", absl::StrCat("a divisor of num_experts (", experts, ") that leaves two or more"),
                        absl::StrCat(groups));
  }
  ASSIGN_OR_RETURN(const int64_t kept, config.Size("topk_group", groups, std::min<int64_t>(groups, 4)));
  if (kept * (experts / groups) < chosen) {
    return config.Error(
        "topk_group",
        absl::StrCat("groups of ", experts / groups, " experts that hold num_experts_per_tok (", chosen, ")"),
        absl::StrCat(kept));
  }
  spec.moe.routing.groups = static_cast<int32_t>(groups);
  spec.moe.routing.groups_kept = static_cast<int32_t>(kept);
  return absl::OkStatus();
}

/// 2.2: only the best experts of a block are admitted, and groups do not count.
absl::Status ReadPool(const ConfigFields& config, ModelSpec& spec) {
  const int64_t chosen = spec.moe.routing.chosen;
  ASSIGN_OR_RETURN(const int64_t pool, config.Size("expert_capacity", spec.moe.experts));
  ASSIGN_OR_RETURN(const int64_t block, config.Size("block_size", kBlockMax));
  if (pool < chosen) {
    return config.Error("expert_capacity", absl::StrCat("at least num_experts_per_tok (", chosen, ")"),
                        absl::StrCat(pool));
  }
  spec.moe.routing.pool_experts = static_cast<int32_t>(pool);
  spec.moe.routing.pool_block = static_cast<int32_t>(block);
  return absl::OkStatus();
}

absl::Status ReadRouting(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(ReadExperts(config, "moe_intermediate_size", spec));
  MoeSpec& moe = spec.moe;
  ASSIGN_OR_RETURN(const int64_t shared, config.Count("num_shared_experts", 64, 0));
  ASSIGN_OR_RETURN(moe.first_layer, config.Count("first_k_dense_replace", spec.layers, 0));
  ASSIGN_OR_RETURN(moe.expert_bias, config.Flag("moe_router_enable_expert_bias", true));
  ASSIGN_OR_RETURN(const double scale, config.Positive("routed_scaling_factor", 2.5));
  moe.shared_mlp = shared * moe.mlp;
  moe.float_router = true;
  moe.routing.score = RoutingRule::Score::kSigmoid;
  moe.routing.normalise = moe.routing.chosen > 1;  // As the published code.
  moe.routing.scale = static_cast<float>(scale);
  return config.Has("expert_capacity") ? ReadPool(config, spec) : ReadGroups(config, spec);
}

absl::Status ReadControlToken(const ConfigFields& config, const char* field, TokenId& id) {
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, config.Ids(field));
  if (ids.size() > 1) return config.Error(field, "one id", config.Shown(field));
  if (!ids.empty()) id = ids.front();
  return absl::OkStatus();
}

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, SupportedFields()));
  RETURN_IF_ERROR(ReadNetwork(config, {.norm_epsilon = 1e-5, .rope_theta = 10000.0, .rotated_share = 0.5}, spec));
  RETURN_IF_ERROR(CheckRotation(config, spec));
  RETURN_IF_ERROR(ReadRouting(config, spec));
  if (spec.moe.first_layer > 0) RETURN_IF_ERROR(ReadDenseMlp(config, spec));
  ASSIGN_OR_RETURN(spec.head_norms, config.Flag("use_qk_norm", true));
  RETURN_IF_ERROR(ReadControlToken(config, "delete_token_id", spec.delete_id));
  RETURN_IF_ERROR(ReadControlToken(config, "split_token_id", spec.insert_id));
  ASSIGN_OR_RETURN(const int64_t block, config.Size("block_size", kBlockMax, 32));
  spec.block_length = static_cast<int32_t>(block);
  spec.grid = BlockGrid::kAbsolute;
  return absl::OkStatus();
}

TensorNames Names() {
  TensorNames names = QwenTensorNames();
  names.embedding = "model.word_embeddings.weight";
  names.qkv = "attention.query_key_value.weight";
  names.q_norm = "attention.query_layernorm.weight";
  names.k_norm = "attention.key_layernorm.weight";
  names.attention_out = "attention.dense.weight";
  names.expert_bias = "mlp.gate.expert_bias";
  names.stacked_gate = "mlp.experts.gate_proj";
  names.stacked_up = "mlp.experts.up_proj";
  names.stacked_down = "mlp.experts.down_proj";
  names.shared_gate = "mlp.shared_experts.gate_proj.weight";
  names.shared_up = "mlp.shared_experts.up_proj.weight";
  names.shared_down = "mlp.shared_experts.down_proj.weight";
  return names;
}

}  // namespace

std::vector<Family> Llada2Families() {
  return {{
      .name = "llada2",
      .architecture = "LLaDA2MoeModelLM",
      .tied_field = "tie_word_embeddings",
      .tensors = Names(),
      .mask_token = "<|mask|>",
      .stop_tokens = {"<|endoftext|>", "<|role_end|>"},
      .published_vocabularies = {157184},
      .published_mask_id = 156895,
      .published_stop_ids = {156892},
      .read_config = ReadConfig,
  }};
}

}  // namespace quicksilver
