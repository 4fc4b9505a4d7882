#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// LLaDA-MoE (models.md §3): OLMoE's network without a causal mask. Published under LLaDA's model_type.

namespace quicksilver {
namespace {

// The published code never divides the weights by their sum, whatever norm_topk_prob says.
const std::vector<SupportedField>& SupportedFields() {
  static const std::vector<SupportedField> fields = {
      {"attention_bias", "false", {"false"}},
      {"clip_qkv", "null", {"null"}},
      {"moe_router_score_function", "\"softmax\"", {"\"softmax\""}},
      {"norm_topk_prob", "false", {"false"}},
      {"routed_scaling_factor", "1", {"1"}},
      {"router_num_group", "null", {"null", "1"}},
  };
  return fields;
}

/// moe_layer_freq: 0 for each dense layer, which must come first, then 1 for each layer of experts.
absl::Status ReadLayers(const ConfigFields& config, ModelSpec& spec) {
  const nlohmann::json* layers = config.Find("moe_layer_freq");
  if (layers == nullptr || *layers == 1) return absl::OkStatus();
  const bool listed = layers->is_array() && static_cast<int64_t>(layers->size()) == spec.layers;
  const auto begin = layers->begin(), end = layers->end();
  const auto first = listed ? std::find(begin, end, 1) : end;
  if (!listed || std::count(begin, first, 0) != first - begin || std::count(first, end, 1) != end - first) {
    return config.Error("moe_layer_freq", absl::StrCat("a list of ", spec.layers, " numbers, zeros and then ones"),
                        config.Shown("moe_layer_freq"));
  }
  spec.moe.first_layer = first - begin;
  return absl::OkStatus();
}

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, SupportedFields()));
  RETURN_IF_ERROR(ReadNetwork(config, {.norm_epsilon = 1e-5}, spec));
  RETURN_IF_ERROR(ReadExperts(config, "expert_intermediate_size", spec));
  RETURN_IF_ERROR(ReadLayers(config, spec));
  if (spec.moe.first_layer > 0) {
    ASSIGN_OR_RETURN(spec.mlp, config.Size("dense_intermediate_size", kWidthMax));
  }
  ASSIGN_OR_RETURN(spec.moe.shared_mlp, config.Count("shared_expert_intermediate_size", kWidthMax, 0));
  ASSIGN_OR_RETURN(spec.moe.expert_bias, config.Flag("moe_router_enable_expert_bias", false));
  ASSIGN_OR_RETURN(spec.head_norms, config.Flag("qk_layernorm", true));
  spec.moe.routing.score = RoutingRule::Score::kSoftmax;
  spec.moe.routing.weigh_biased = spec.moe.expert_bias;
  spec.moe.routing.round_weights = true;
  spec.block_length = 32;
  spec.grid = BlockGrid::kAfterPrompt;
  return absl::OkStatus();
}

TensorNames Names() {
  TensorNames names = QwenTensorNames();
  names.expert_bias = "mlp.expert_bias";
  names.shared_gate = "shared_expert.gate_proj.weight";
  names.shared_up = "shared_expert.up_proj.weight";
  names.shared_down = "shared_expert.down_proj.weight";
  return names;
}

}  // namespace

std::vector<Family> LladaMoeFamilies() {
  return {{
      .name = "llada_moe",
      .architecture = "LLaDAMoEModelLM",
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
