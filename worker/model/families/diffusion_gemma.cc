#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/families/config_fields.h"
#include "worker/model/families/family.h"
#include "worker/model/gemma_tensors.h"

// DiffusionGemma's text model (models.md §8): one stack of layers that writes committed tokens causally and denoises a
// canvas in both directions. Images are not served.

namespace quicksilver {
namespace {

constexpr int64_t kPublishedVocabulary = 262144;

const std::vector<SupportedField>& SupportedFields() {
  static const std::vector<SupportedField> fields = {
      {"hidden_activation", "\"gelu_pytorch_tanh\"", {"\"gelu_pytorch_tanh\""}},
      {"attention_bias", "false", {"false"}},
      {"attention_k_eq_v", "true", {"true"}},
      {"num_kv_shared_layers", "0", {"0"}},
      {"hidden_size_per_layer_input", "0", {"0"}},
      {"use_double_wide_mlp", "false", {"false"}},
      {"enable_moe_block", "true", {"true"}},
      {"tie_word_embeddings", "true", {"true"}},
      {"quantization_config", "null", {"null"}},
  };
  return fields;
}

ConfigFields Nested(const ConfigFields& config, const char* name) {
  const nlohmann::json* fields = config.Find(name);
  const bool is_object = fields != nullptr && fields->is_object();
  return ConfigFields(absl::StrCat(config.file(), ": ", name), is_object ? *fields : nlohmann::json::object());
}

absl::Status ReadLayerTypes(const ConfigFields& text, ModelSpec& spec) {
  const nlohmann::json* types = text.Find("layer_types");
  const bool fits = types != nullptr && types->is_array() && static_cast<int64_t>(types->size()) == spec.layers;
  if (!fits) {
    return text.Error("layer_types", absl::StrCat("a list of num_hidden_layers (", spec.layers, ") entries"),
                      text.Shown("layer_types"));
  }
  for (const nlohmann::json& type : *types) {
    if (type != "full_attention" && type != "sliding_attention") {
      return text.Error("layer_types", "\"sliding_attention\" or \"full_attention\"", text.Shown("layer_types"));
    }
    spec.gemma.full.push_back(type == "full_attention" ? 1 : 0);
  }
  return absl::OkStatus();
}

absl::Status ReadRotation(const ConfigFields& text, ModelSpec& spec) {
  const ConfigFields all = Nested(text, "rope_parameters");
  const ConfigFields sliding = Nested(all, "sliding_attention"), full = Nested(all, "full_attention");
  RETURN_IF_ERROR(sliding.Check({{"rope_type", "\"default\"", {"\"default\""}}}));
  RETURN_IF_ERROR(full.Check({{"rope_type", "\"proportional\"", {"\"proportional\""}}}));
  ASSIGN_OR_RETURN(spec.rope_theta, sliding.Positive("rope_theta", 1e4));
  ASSIGN_OR_RETURN(spec.gemma.rope_theta, full.Positive("rope_theta", 1e6));
  ASSIGN_OR_RETURN(const double share, full.Positive("partial_rotary_factor", 0.25));
  const auto rotated = static_cast<int64_t>(static_cast<double>(spec.gemma.head_size) * share);
  if (share > 1.0 || rotated < 4 || (rotated != spec.gemma.head_size && rotated % 4 != 0)) {
    return full.Error("partial_rotary_factor",
                      absl::StrCat("a share of the head's ", spec.gemma.head_size, " dimensions, four at a time"),
                      absl::StrCat(share));
  }
  spec.gemma.rotary_size = rotated;
  return absl::OkStatus();
}

absl::Status ReadAttention(const ConfigFields& text, ModelSpec& spec) {
  GemmaSpec& gemma = spec.gemma;
  ASSIGN_OR_RETURN(spec.heads, text.Size("num_attention_heads", kHeadsMax));
  ASSIGN_OR_RETURN(spec.kv_heads, text.Size("num_key_value_heads", kHeadsMax));
  ASSIGN_OR_RETURN(spec.head_size, text.Size("head_dim", kHeadSizeMax));
  ASSIGN_OR_RETURN(gemma.kv_heads, text.Size("num_global_key_value_heads", kHeadsMax, spec.kv_heads));
  ASSIGN_OR_RETURN(gemma.head_size, text.Size("global_head_dim", kHeadSizeMax, spec.head_size));
  ASSIGN_OR_RETURN(const int64_t window, text.Size("sliding_window", kPositionsMax));
  gemma.window = static_cast<int32_t>(window);
  if (spec.heads % gemma.kv_heads != 0) {
    return text.Error("num_global_key_value_heads", absl::StrCat("a divisor of the ", spec.heads, " query heads"),
                      absl::StrCat(gemma.kv_heads));
  }
  if (gemma.head_size % 2 != 0) return text.Error("global_head_dim", "an even number", absl::StrCat(gemma.head_size));
  RETURN_IF_ERROR(ReadLayerTypes(text, spec));
  return ReadRotation(text, spec);
}

/// Every layer has a dense MLP beside its experts.
absl::Status ReadExperts(const ConfigFields& text, ModelSpec& spec) {
  MoeSpec& moe = spec.moe;
  ASSIGN_OR_RETURN(moe.shared_mlp, text.Size("intermediate_size", kWidthMax));
  ASSIGN_OR_RETURN(moe.experts, text.Size("num_experts", kExpertsMax));
  ASSIGN_OR_RETURN(moe.mlp, text.Size("moe_intermediate_size", kWidthMax));
  const char* const field = text.Has("top_k_experts") ? "top_k_experts" : "num_experts_per_tok";
  ASSIGN_OR_RETURN(const int64_t chosen, text.Size(field, std::min<int64_t>(moe.experts, kChosenExpertsMax)));
  moe.routing.experts = static_cast<int32_t>(moe.experts);
  moe.routing.chosen = static_cast<int32_t>(chosen);
  moe.routing.score = RoutingRule::Score::kSoftmax;
  moe.routing.normalise = true;
  moe.float_router = true;
  moe.stacked = true;
  return absl::OkStatus();
}

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  const ConfigFields text = Nested(config, "text_config");
  RETURN_IF_ERROR(text.Check(SupportedFields()));
  ASSIGN_OR_RETURN(spec.hidden, text.Size("hidden_size", kWidthMax));
  ASSIGN_OR_RETURN(spec.layers, text.Size("num_hidden_layers", kLayersMax));
  ASSIGN_OR_RETURN(spec.vocabulary, text.Size("vocab_size", kVocabularyMax));
  ASSIGN_OR_RETURN(spec.positions_max, text.Size("max_position_embeddings", kPositionsMax));
  ASSIGN_OR_RETURN(const double epsilon, text.Positive("rms_norm_eps", 1e-6));
  ASSIGN_OR_RETURN(const double soft_cap, text.Positive("final_logit_softcapping"));
  ASSIGN_OR_RETURN(const int64_t canvas, config.Size("canvas_length", kBlockMax, 256));
  spec.norm_epsilon = static_cast<float>(epsilon);
  spec.gemma.soft_cap = static_cast<float>(soft_cap);
  spec.head_norms = true;
  spec.tied = true;
  spec.tokens = spec.vocabulary;
  spec.block_length = static_cast<int32_t>(canvas);
  spec.grid = BlockGrid::kCanvas;
  RETURN_IF_ERROR(ReadAttention(text, spec));
  return ReadExperts(text, spec);
}

}  // namespace

std::vector<Family> DiffusionGemmaFamilies() {
  return {{.name = "diffusion_gemma",
           .architecture = "DiffusionGemmaForBlockDiffusion",
           .tied_field = nullptr,
           .tensors = {.lm_head = "lm_head.weight"},
           .mask_token = nullptr,
           .stop_tokens = {"<turn|>"},
           .published_vocabularies = {kPublishedVocabulary},
           .published_stop_ids = {1, 106},
           .read_config = ReadConfig,
           .read_names = ReadGemmaPrefix}};
}

}  // namespace quicksilver
