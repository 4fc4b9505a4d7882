#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/families/config_fields.h"
#include "worker/model/families/family.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

// Fields and tensor names that most families took over from Hugging Face's Llama and Qwen.

/// What a family's published class assumes of fields that config.json lacks. Empty: the field must be there.
struct FieldDefaults {
  std::optional<int64_t> head_size = std::nullopt;  ///< Empty: hidden_size / num_attention_heads.
  std::optional<double> norm_epsilon = std::nullopt;
  std::optional<double> rope_theta = std::nullopt;
  double rotated_share = 1.0;  ///< partial_rotary_factor
};

/// SiLU, no scaling of positions, no sliding window, no quantisation.
const std::vector<SupportedField>& PlainNetwork();
/// PlainNetwork(), `more`, and that every layer listed in layer_types attends to all.
absl::Status CheckNetwork(const ConfigFields& config, const std::vector<SupportedField>& more);

/// hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, vocab_size,
/// max_position_embeddings, rms_norm_eps, rope_theta, partial_rotary_factor, tie_word_embeddings.
absl::Status ReadNetwork(const ConfigFields& config, const FieldDefaults& defaults, ModelSpec& spec);
/// intermediate_size of the dense layers.
absl::Status ReadDenseMlp(const ConfigFields& config, ModelSpec& spec);
/// num_experts, num_experts_per_tok and an expert's width, `mlp_field`.
absl::Status ReadExperts(const ConfigFields& config, const char* mlp_field, ModelSpec& spec);
/// Qwen3's mixture of experts in every layer: ReadExperts() and norm_topk_prob.
absl::Status ReadQwenExperts(const ConfigFields& config, ModelSpec& spec);

/// Qwen's names, with those of its biases, head norms and experts.
TensorNames QwenTensorNames();

}  // namespace quicksilver
