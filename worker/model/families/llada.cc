#include "common/status_macros.h"
#include "worker/model/families/config_fields.h"
#include "worker/model/families/family.h"

// LLaDA-8B and its kin (models.md §1): a bias-free Llama block without a causal mask, under its own field names.

namespace quicksilver {
namespace {

// What an absent field means follows the published configuration class, not what the 8B model uses.
const std::vector<SupportedField>& SupportedFields() {
  static const std::vector<SupportedField> fields = {
      {"activation_type", "\"swiglu\"", {"\"silu\""}},
      {"block_type", "\"sequential\"", {"\"llama\""}},
      {"block_group_size", "1", {"1"}},
      {"layer_norm_type", "\"default\"", {"\"rms\""}},
      {"layer_norm_with_affine", "true", {"true"}},
      {"bias_for_layer_norm", "null", {"false", "null"}},
      {"attention_layer_norm", "false", {"false"}},
      {"include_bias", "true", {"false"}},
      {"include_qkv_bias", "false", {"false", "null"}},
      {"alibi", "false", {"false"}},
      {"rope", "false", {"true"}},
      {"rope_scaling", "null", {"null"}},
      {"scale_logits", "false", {"false"}},
      {"input_emb_norm", "false", {"false"}},
      {"quantization_config", "null", {"null"}},
  };
  return fields;
}

absl::Status ReadHeads(const ConfigFields& config, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.heads, config.Size("n_heads", kHeadsMax));
  ASSIGN_OR_RETURN(const bool multi_query, config.Flag("multi_query_attention", false));
  ASSIGN_OR_RETURN(spec.kv_heads, config.Size("n_kv_heads", kHeadsMax, multi_query ? 1 : spec.heads));
  if (spec.hidden % spec.heads != 0) {
    return config.Error("n_heads", absl::StrCat("a divisor of d_model (", spec.hidden, ")"), absl::StrCat(spec.heads));
  }
  spec.head_size = spec.hidden / spec.heads;
  return absl::OkStatus();
}

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(config.Check(SupportedFields()));
  ASSIGN_OR_RETURN(spec.hidden, config.Size("d_model", kWidthMax));
  ASSIGN_OR_RETURN(spec.layers, config.Size("n_layers", kLayersMax));
  RETURN_IF_ERROR(ReadHeads(config, spec));
  if (config.Has("mlp_hidden_size")) {
    ASSIGN_OR_RETURN(spec.mlp, config.Size("mlp_hidden_size", kWidthMax));
  } else {
    ASSIGN_OR_RETURN(const int64_t mlp_ratio, config.Size("mlp_ratio", 1 << 10, 4));
    spec.mlp = mlp_ratio * spec.hidden;
  }
  ASSIGN_OR_RETURN(spec.tokens, config.Size("vocab_size", kVocabularyMax));
  ASSIGN_OR_RETURN(spec.vocabulary, config.Size("embedding_size", kVocabularyMax, spec.tokens));
  if (spec.vocabulary < spec.tokens) {
    return config.Error("embedding_size", absl::StrCat("at least vocab_size (", spec.tokens, ")"),
                        absl::StrCat(spec.vocabulary));
  }
  ASSIGN_OR_RETURN(spec.positions_max, config.Size("max_sequence_length", kPositionsMax));
  ASSIGN_OR_RETURN(const double epsilon, config.Positive("rms_norm_eps", 1e-5));
  spec.norm_epsilon = static_cast<float>(epsilon);
  ASSIGN_OR_RETURN(spec.rope_theta, config.Positive("rope_theta", 10000.0));
  ASSIGN_OR_RETURN(spec.rope_full_precision, config.Flag("rope_full_precision", true));
  ASSIGN_OR_RETURN(spec.tied, config.Flag("weight_tying", false));
  ASSIGN_OR_RETURN(const int64_t block, config.Size("block_size", kBlockMax, 32));
  spec.block_length = static_cast<int32_t>(block);
  spec.grid = BlockGrid::kAfterPrompt;
  spec.head_norms = false;
  return absl::OkStatus();
}

}  // namespace

std::vector<Family> LladaFamilies() {
  return {{
      .name = "llada",
      .architecture = "LLaDAModelLM",
      .tied_field = "weight_tying",
      .tensors = {.embedding = "model.transformer.wte.weight",
                  .layer_prefix = "model.transformer.blocks.",
                  .attention_norm = "attn_norm.weight",
                  .q = "q_proj.weight",
                  .k = "k_proj.weight",
                  .v = "v_proj.weight",
                  .attention_out = "attn_out.weight",
                  .mlp_norm = "ff_norm.weight",
                  .gate = "ff_proj.weight",
                  .up = "up_proj.weight",
                  .down = "ff_out.weight",
                  .final_norm = "model.transformer.ln_f.weight",
                  .lm_head = "model.transformer.ff_out.weight"},
      .mask_token = "<|mdm_mask|>",
      .stop_tokens = {"<|endoftext|>", "<|eot_id|>"},
      .published_vocabularies = {126464},
      .published_mask_id = 126336,
      .published_stop_ids = {126081, 126348},
      .read_config = ReadConfig,
  }};
}

}  // namespace quicksilver
