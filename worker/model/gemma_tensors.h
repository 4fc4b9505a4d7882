#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {

/// Names of one layer of DiffusionGemma (models.md §8.3).
struct GemmaLayerTensors {
  std::string attention_norm, q, k, v, out, q_norm, k_norm;  ///< v is k in a full layer.
  std::string post_attention_norm;
  std::string mlp_norm, gate, up, down, post_mlp_norm;
  std::string expert_norm, expert_gate_up, expert_down, post_expert_norm;
  std::string router, router_scale, expert_scale;
  std::string post_norm, layer_scale;
};
GemmaLayerTensors GemmaTensorsOfLayer(const ModelSpec& spec, int64_t layer);

/// Of the module that tells a canvas what the last step expected.
struct GemmaConditioningTensors {
  std::string norm, gate, up, down;
};
GemmaConditioningTensors GemmaTensorsOfConditioning();

/// ExpectedTensors() of the family: the embedding first, the final norm last.
std::vector<ExpectedTensor> GemmaExpectedTensors(const ModelSpec& spec);

/// Sets spec.gemma.prefix. The text model may stand under the decoder, the encoder or both, where they are tied.
absl::Status ReadGemmaPrefix(const Checkpoint& checkpoint, ModelSpec& spec);

/// Tensors of images, and the second copy of the text model.
bool IsIgnoredByGemma(const ModelSpec& spec, const std::string& name);

}  // namespace quicksilver
