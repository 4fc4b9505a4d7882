#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/weights.h"

namespace quicksilver {

/// A gated MLP's columns of one rank.
struct GemmaMlpWeights {
  std::unique_ptr<GemmWeight> gate_up;  ///< [2 I / tp, H]: gate, then up.
  std::unique_ptr<GemmWeight> down;     ///< [H, I / tp]
};

/// One rank's slices of one layer, in device memory. Gains are floats.
struct GemmaLayerWeights {
  DeviceBuffer attention_norm;      ///< [H], as all norms but those of heads.
  std::unique_ptr<GemmWeight> qkv;  ///< [(nh + 2 nkv) hd / tp, H]; the values' rows of a full layer are its keys'.
  DeviceBuffer q_norm, k_norm;      ///< [hd]
  std::unique_ptr<GemmWeight> out;  ///< [H, nh hd / tp]
  DeviceBuffer post_attention_norm;
  DeviceBuffer mlp_norm, post_mlp_norm;
  GemmaMlpWeights mlp;
  DeviceBuffer expert_norm, post_expert_norm;
  DeviceBuffer router_gain;  ///< [H] the router's scale times H^-0.5.
  MoeWeights moe;
  DeviceBuffer expert_scale;  ///< [E]
  DeviceBuffer post_norm;
  DeviceBuffer layer_scale;  ///< [1]
};

struct GemmaWeights {
  DeviceBuffer embedding_memory;
  ConstMatrix embedding;  ///< [V or V/tp, H] in the checkpoint's dtype.
  int64_t embedding_first_id = 0;
  DeviceBuffer embedding_scale;  ///< [1] sqrt(H) rounded to bf16.
  DeviceBuffer conditioning_norm;
  GemmaMlpWeights conditioning;
  std::vector<GemmaLayerWeights> layers;
  DeviceBuffer final_norm;
  std::unique_ptr<GemmWeight> lm_head;  ///< [V/tp, H], rows beyond the vocabulary zero.
  size_t bytes = 0;                     ///< Device memory of all of them.
};

/// As LoadWeights().
absl::StatusOr<GemmaWeights> LoadGemmaWeights(const ModelSpec& spec, const Shard& shard, const Checkpoint& checkpoint,
                                              Ops& ops, const LoadProgress& progress);

}  // namespace quicksilver
