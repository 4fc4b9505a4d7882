#include "common/status_macros.h"
#include "worker/model/families/family.h"
#include "worker/model/families/shared_fields.h"

// iLLaDA (models.md §1.6): a bias-free Llama block with grouped heads, without a causal mask. Its theta, epsilon and
// precision of rotation are not published: config.json has to state the first two, and every tensor is checked by name.

namespace quicksilver {
namespace {

absl::Status ReadConfig(const ConfigFields& config, ModelSpec& spec) {
  RETURN_IF_ERROR(CheckNetwork(config, {{"attention_bias", "false", {"false"}}, {"qk_layernorm", "false", {"false"}}}));
  RETURN_IF_ERROR(ReadNetwork(config, FieldDefaults(), spec));
  RETURN_IF_ERROR(ReadDenseMlp(config, spec));
  ASSIGN_OR_RETURN(spec.rope_full_precision, config.Flag("rope_full_precision", false));
  spec.block_length = 32;
  spec.grid = BlockGrid::kAfterPrompt;
  return absl::OkStatus();
}

}  // namespace

std::vector<Family> IlladaFamilies() {
  return {{
      .name = "llada",
      .architecture = "ILLaDAForCausalLM",
      .tied_field = "tie_word_embeddings",
      .tensors = QwenTensorNames(),
      .mask_token = "<[MASK]>",
      .stop_tokens = {},
      .published_vocabularies = {155136},
      .published_mask_id = 5,
      .published_stop_ids = {2},
      .read_config = ReadConfig,
  }};
}

}  // namespace quicksilver
