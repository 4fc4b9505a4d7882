#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// SDAR (models.md §5): the Qwen3 network, dense or with experts, under a block-causal mask.

namespace quicksilver {
namespace {

absl::Status ReadNetworkAndBlock(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, {{"attention_bias", "false", {"false"}}}));
  RETURN_IF_ERROR(ReadNetwork(config, {.head_size = 128, .norm_epsilon = 1e-6, .rope_theta = 10000.0}, spec));
  ASSIGN_OR_RETURN(const int64_t block, config.Size("block_size", kBlockMax, 4));
  spec.block_length = static_cast<int32_t>(block);
  spec.grid = BlockGrid::kAbsolute;
  spec.head_norms = true;
  return absl::OkStatus();
}

absl::Status ReadDense(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(config.Check({{"num_experts", "0", {"0"}}}));
  RETURN_IF_ERROR(ReadNetworkAndBlock(config, spec));
  return ReadDenseMlp(config, spec);
}

absl::Status ReadMoe(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(ReadNetworkAndBlock(config, spec));
  return ReadQwenExperts(config, spec);
}

Family SdarWith(const char* architecture, absl::Status (*read_config)(const ConfigFields&, ModelSpec&)) {
  return {.name = "sdar",
          .architecture = architecture,
          .tied_field = "tie_word_embeddings",
          .tensors = QwenTensorNames(),
          .mask_token = "<|MASK|>",
          .stop_tokens = {"<|endoftext|>", "<|im_end|>"},
          .published_vocabularies = {151936},
          .published_mask_id = 151669,
          .published_stop_ids = {151643, 151645},
          .read_config = read_config};
}

}  // namespace

std::vector<Family> SdarFamilies() {
  return {SdarWith("SDARForCausalLM", ReadDense), SdarWith("SDARMoeForCausalLM", ReadMoe)};
}

}  // namespace quicksilver
