#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// Plain autoregressive Qwen2 and Qwen3, the baseline of models that denoise: blocks of one position under a causal
// mask, each predicted by the row before it. They have no mask token.

namespace quicksilver {
namespace {

void PredictTheNext(ModelSpec& spec) {
  spec.block_length = 1;
  spec.grid = BlockGrid::kAbsolute;
  spec.shift = true;
}

absl::Status ReadQwen2(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, {}));
  RETURN_IF_ERROR(ReadNetwork(config, {.norm_epsilon = 1e-6, .rope_theta = 10000.0}, spec));
  RETURN_IF_ERROR(ReadDenseMlp(config, spec));
  spec.qkv_bias = true;
  PredictTheNext(spec);
  return absl::OkStatus();
}

absl::Status ReadQwen3Attention(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, {{"attention_bias", "false", {"false"}}}));
  RETURN_IF_ERROR(ReadNetwork(config, {.head_size = 128, .norm_epsilon = 1e-6, .rope_theta = 10000.0}, spec));
  spec.head_norms = true;
  PredictTheNext(spec);
  return absl::OkStatus();
}

absl::Status ReadQwen3(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(ReadQwen3Attention(config, spec));
  return ReadDenseMlp(config, spec);
}

absl::Status ReadQwen3Moe(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(ReadQwen3Attention(config, spec));
  return ReadQwenExperts(config, spec);
}

Family QwenWith(const char* architecture, absl::Status (*read_config)(const ConfigFields&, ModelSpec&)) {
  return {.name = "qwen",
          .architecture = architecture,
          .tied_field = "tie_word_embeddings",
          .tensors = QwenTensorNames(),
          .mask_token = nullptr,
          .stop_tokens = {"<|endoftext|>", "<|im_end|>"},
          .published_vocabularies = {151936, 152064},
          .published_stop_ids = {151643, 151645},
          .read_config = read_config};
}

}  // namespace

std::vector<Family> QwenFamilies() {
  return {QwenWith("Qwen2ForCausalLM", ReadQwen2), QwenWith("Qwen3ForCausalLM", ReadQwen3),
          QwenWith("Qwen3MoeForCausalLM", ReadQwen3Moe)};
}

}  // namespace quicksilver
