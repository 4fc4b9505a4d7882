#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// Dream, Dream-Coder and DiffuCoder (models.md §2): the Qwen2 network without a causal mask. It was made from an
// autoregressive one and still predicts the next position.

namespace quicksilver {
namespace {

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, {{"use_mrope", "false", {"false"}}}));
  RETURN_IF_ERROR(ReadNetwork(config, {.norm_epsilon = 1e-6, .rope_theta = 10000.0}, spec));
  RETURN_IF_ERROR(ReadDenseMlp(config, spec));
  spec.block_length = 32;
  spec.grid = BlockGrid::kAfterPrompt;
  spec.shift = true;
  spec.qkv_bias = true;
  return absl::OkStatus();
}

}  // namespace

std::vector<Family> DreamFamilies() {
  return {{
      .name = "dream",
      .architecture = "DreamModel",
      .tied_field = "tie_word_embeddings",
      .tensors = QwenTensorNames(),
      .mask_token = "<|mask|>",
      .stop_tokens = {"<|endoftext|>", "<|im_end|>"},
      .published_vocabularies = {152064},
      .published_mask_id = 151666,
      .published_stop_ids = {151643, 151645},
      .read_config = ReadConfig,
  }};
}

}  // namespace quicksilver
