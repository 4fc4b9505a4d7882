#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// Fast-dLLM v2 (models.md §6): the Qwen2 network under a block-causal mask, predicting the next position.

namespace quicksilver {
namespace {

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, {}));
  RETURN_IF_ERROR(ReadNetwork(config, {.norm_epsilon = 1e-6, .rope_theta = 10000.0}, spec));
  RETURN_IF_ERROR(ReadDenseMlp(config, spec));
  ASSIGN_OR_RETURN(const int64_t block, config.Size("bd_size", kBlockMax, 32));
  spec.block_length = static_cast<int32_t>(block);
  spec.grid = BlockGrid::kAbsolute;
  spec.shift = true;
  spec.qkv_bias = true;
  return absl::OkStatus();
}

}  // namespace

std::vector<Family> FastDllmFamilies() {
  return {{
      .name = "fast_dllm",
      .architecture = "Fast_dLLM_QwenForCausalLM",
      .tied_field = "tie_word_embeddings",
      .tensors = QwenTensorNames(),
      .mask_token = "|<MASK>|",
      .stop_tokens = {"<|endoftext|>", "<|im_end|>"},
      .published_vocabularies = {151936, 152064},
      .published_mask_id = 151665,
      .published_stop_ids = {151643, 151645},
      .read_config = ReadConfig,
  }};
}

}  // namespace quicksilver
