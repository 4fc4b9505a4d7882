#include "common/status_macros.h"
#include "worker/model/families/config_fields.h"
#include "worker/model/families/family.h"

// SDAR dense (models.md §5): the Qwen3 network under a block-causal mask.

namespace quicksilver {
namespace {

const std::vector<SupportedField>& SupportedFields() {
  static const std::vector<SupportedField> fields = {
      {"hidden_act", "\"silu\"", {"\"silu\""}},  {"attention_bias", "false", {"false"}},
      {"mlp_bias", "false", {"false"}},          {"rope_scaling", "null", {"null"}},
      {"partial_rotary_factor", "1.0", {"1.0"}}, {"use_sliding_window", "false", {"false"}},
      {"num_experts", "0", {"0", "null"}},       {"quantization_config", "null", {"null"}},
  };
  return fields;
}

// Newer files move theta into rope_parameters, beside what used to be rope_scaling.
absl::StatusOr<double> RopeTheta(const ConfigFields& config) {
  const nlohmann::json* parameters = config.Find("rope_parameters");
  if (parameters == nullptr) return config.Positive("rope_theta", 10000.0);
  const ConfigFields nested(config.file() + ": rope_parameters", *parameters);
  RETURN_IF_ERROR(nested.Check({{"rope_type", "\"default\"", {"\"default\""}}}));
  return nested.Positive("rope_theta");
}

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(config.Check(SupportedFields()));
  ASSIGN_OR_RETURN(spec.hidden, config.Size("hidden_size", kWidthMax));
  ASSIGN_OR_RETURN(spec.layers, config.Size("num_hidden_layers", kLayersMax));
  ASSIGN_OR_RETURN(spec.heads, config.Size("num_attention_heads", kHeadsMax));
  ASSIGN_OR_RETURN(spec.kv_heads, config.Size("num_key_value_heads", kHeadsMax, spec.heads));
  ASSIGN_OR_RETURN(spec.head_size, config.Size("head_dim", kHeadSizeMax, 128));
  ASSIGN_OR_RETURN(spec.mlp, config.Size("intermediate_size", kWidthMax));
  ASSIGN_OR_RETURN(spec.vocabulary, config.Size("vocab_size", kVocabularyMax));
  ASSIGN_OR_RETURN(spec.positions_max, config.Size("max_position_embeddings", kPositionsMax));
  ASSIGN_OR_RETURN(const double epsilon, config.Positive("rms_norm_eps", 1e-6));
  spec.norm_epsilon = static_cast<float>(epsilon);
  ASSIGN_OR_RETURN(spec.rope_theta, RopeTheta(config));
  ASSIGN_OR_RETURN(spec.tied, config.Flag("tie_word_embeddings", false));
  ASSIGN_OR_RETURN(const int64_t block, config.Size("block_size", kBlockMax, 4));
  spec.block_length = static_cast<int32_t>(block);
  spec.tokens = spec.vocabulary;
  spec.grid = BlockGrid::kAbsolute;
  spec.rope_full_precision = false;
  spec.head_norms = true;
  return absl::OkStatus();
}

}  // namespace

const Family& SdarFamily() {
  static const Family family = {
      .name = "sdar",
      .architecture = "SDARForCausalLM",
      .tied_field = "tie_word_embeddings",
      .tensors = {.embedding = "model.embed_tokens.weight",
                  .layer_prefix = "model.layers.",
                  .attention_norm = "input_layernorm.weight",
                  .q = "self_attn.q_proj.weight",
                  .k = "self_attn.k_proj.weight",
                  .v = "self_attn.v_proj.weight",
                  .q_norm = "self_attn.q_norm.weight",
                  .k_norm = "self_attn.k_norm.weight",
                  .attention_out = "self_attn.o_proj.weight",
                  .mlp_norm = "post_attention_layernorm.weight",
                  .gate = "mlp.gate_proj.weight",
                  .up = "mlp.up_proj.weight",
                  .down = "mlp.down_proj.weight",
                  .final_norm = "model.norm.weight",
                  .lm_head = "lm_head.weight"},
      .mask_token = "<|MASK|>",
      .stop_tokens = {"<|endoftext|>", "<|im_end|>"},
      .published_vocabulary = 151936,
      .published_mask_id = 151669,
      .published_stop_ids = {151643, 151645},
      .read_config = ReadConfig,
  };
  return family;
}

}  // namespace quicksilver
