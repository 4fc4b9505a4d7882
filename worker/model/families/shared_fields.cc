#include "worker/model/families/shared_fields.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

// The share of a head's dimensions that is rotated.
absl::Status ReadPartialRotary(const ConfigFields& config, double when_absent, ModelSpec& spec) {
  ASSIGN_OR_RETURN(const double share, config.Positive("partial_rotary_factor", when_absent));
  const auto rotated = static_cast<int64_t>(static_cast<double>(spec.head_size) * share);
  if (share > 1.0 || rotated < 2 || (rotated != spec.head_size && rotated % 4 != 0)) {
    return config.Error("partial_rotary_factor",
                        absl::StrCat("a share of the head's ", spec.head_size, " dimensions, four at a time"),
                        absl::StrCat(share));
  }
  spec.rotary_size = rotated == spec.head_size ? 0 : rotated;
  return absl::OkStatus();
}

// Newer files move theta and the rotated share into rope_parameters, beside what used to be rope_scaling.
absl::Status ReadRotation(const ConfigFields& config, const FieldDefaults& defaults, ModelSpec& spec) {
  const nlohmann::json* parameters = config.Find("rope_parameters");
  if (parameters == nullptr) {
    ASSIGN_OR_RETURN(spec.rope_theta, config.Positive("rope_theta", defaults.rope_theta));
    return ReadPartialRotary(config, defaults.rotated_share, spec);
  }
  const ConfigFields nested(config.file() + ": rope_parameters", *parameters);
  RETURN_IF_ERROR(nested.Check({{"rope_type", "\"default\"", {"\"default\""}}}));
  ASSIGN_OR_RETURN(spec.rope_theta, nested.Positive("rope_theta"));
  const bool inside = nested.Has("partial_rotary_factor");
  return ReadPartialRotary(inside ? nested : config, defaults.rotated_share, spec);
}

}  // namespace

const std::vector<SupportedField>& PlainNetwork() {
  static const std::vector<SupportedField> fields = {
      {"hidden_act", "\"silu\"", {"\"silu\""}},  {"mlp_bias", "false", {"false"}},
      {"rope_scaling", "null", {"null"}},        {"use_sliding_window", "false", {"false"}},
      {"quantization_config", "null", {"null"}},
  };
  return fields;
}

absl::Status CheckNetwork(const ConfigFields& config, const std::vector<SupportedField>& more) {
  RETURN_IF_ERROR(config.Check(PlainNetwork()));
  RETURN_IF_ERROR(config.Check(more));
  const nlohmann::json* layers = config.Find("layer_types");
  if (layers == nullptr) return absl::OkStatus();
  const bool full = layers->is_array() && std::all_of(layers->begin(), layers->end(), [](const nlohmann::json& layer) {
                      return layer == "full_attention";
                    });
  if (full) return absl::OkStatus();
  return config.Error("layer_types", "\"full_attention\" for every layer", config.Shown("layer_types"));
}

absl::Status ReadNetwork(const ConfigFields& config, const FieldDefaults& defaults, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.hidden, config.Size("hidden_size", kWidthMax));
  ASSIGN_OR_RETURN(spec.layers, config.Size("num_hidden_layers", kLayersMax));
  ASSIGN_OR_RETURN(spec.heads, config.Size("num_attention_heads", kHeadsMax));
  ASSIGN_OR_RETURN(spec.kv_heads, config.Size("num_key_value_heads", kHeadsMax, spec.heads));
  if (config.Has("head_dim") || defaults.head_size.has_value()) {
    ASSIGN_OR_RETURN(spec.head_size, config.Size("head_dim", kHeadSizeMax, defaults.head_size));
  } else if (spec.hidden % spec.heads == 0) {
    spec.head_size = spec.hidden / spec.heads;
  } else {
    return config.Error("num_attention_heads", absl::StrCat("a divisor of hidden_size (", spec.hidden, ")"),
                        absl::StrCat(spec.heads));
  }
  ASSIGN_OR_RETURN(spec.vocabulary, config.Size("vocab_size", kVocabularyMax));
  ASSIGN_OR_RETURN(spec.positions_max, config.Size("max_position_embeddings", kPositionsMax));
  ASSIGN_OR_RETURN(const double epsilon, config.Positive("rms_norm_eps", defaults.norm_epsilon));
  spec.norm_epsilon = static_cast<float>(epsilon);
  RETURN_IF_ERROR(ReadRotation(config, defaults, spec));
  ASSIGN_OR_RETURN(spec.tied, config.Flag("tie_word_embeddings", false));
  spec.tokens = spec.vocabulary;
  return absl::OkStatus();
}

absl::Status ReadDenseMlp(const ConfigFields& config, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.mlp, config.Size("intermediate_size", kWidthMax));
  return absl::OkStatus();
}

absl::Status ReadExperts(const ConfigFields& config, const char* mlp_field, ModelSpec& spec) {
  MoeSpec& moe = spec.moe;
  ASSIGN_OR_RETURN(moe.experts, config.Size("num_experts", kExpertsMax));
  ASSIGN_OR_RETURN(const int64_t chosen,
                   config.Size("num_experts_per_tok", std::min<int64_t>(moe.experts, kChosenExpertsMax)));
  ASSIGN_OR_RETURN(moe.mlp, config.Size(mlp_field, kWidthMax));
  moe.routing.experts = static_cast<int32_t>(moe.experts);
  moe.routing.chosen = static_cast<int32_t>(chosen);
  return absl::OkStatus();
}

absl::Status ReadQwenExperts(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(config.Check({{"decoder_sparse_step", "1", {"1"}}, {"mlp_only_layers", "[]", {"[]"}}}));
  RETURN_IF_ERROR(ReadExperts(config, "moe_intermediate_size", spec));
  ASSIGN_OR_RETURN(spec.moe.routing.normalise, config.Flag("norm_topk_prob", false));
  spec.moe.routing.score = RoutingRule::Score::kSoftmax;
  spec.moe.routing.round_weights = true;
  return absl::OkStatus();
}

TensorNames QwenTensorNames() {
  return {.embedding = "model.embed_tokens.weight",
          .layer_prefix = "model.layers.",
          .attention_norm = "input_layernorm.weight",
          .q = "self_attn.q_proj.weight",
          .k = "self_attn.k_proj.weight",
          .v = "self_attn.v_proj.weight",
          .q_bias = "self_attn.q_proj.bias",
          .k_bias = "self_attn.k_proj.bias",
          .v_bias = "self_attn.v_proj.bias",
          .q_norm = "self_attn.q_norm.weight",
          .k_norm = "self_attn.k_norm.weight",
          .attention_out = "self_attn.o_proj.weight",
          .mlp_norm = "post_attention_layernorm.weight",
          .gate = "mlp.gate_proj.weight",
          .up = "mlp.up_proj.weight",
          .down = "mlp.down_proj.weight",
          .router = "mlp.gate.weight",
          .expert_prefix = "mlp.experts.",
          .expert_gate = "gate_proj.weight",
          .expert_up = "up_proj.weight",
          .expert_down = "down_proj.weight",
          .final_norm = "model.norm.weight",
          .lm_head = "lm_head.weight"};
}

}  // namespace quicksilver
