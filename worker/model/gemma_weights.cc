#include "worker/model/gemma_weights.h"

#include <cmath>
#include <string>
#include <utility>

#include "common/status_macros.h"
#include "kernels/host_float.h"
#include "worker/model/gemma_tensors.h"
#include "worker/model/weight_loader.h"

namespace quicksilver {
namespace {

class GemmaLoader {
 public:
  GemmaLoader(const ModelSpec& spec, const Shard& shard, const Checkpoint& checkpoint, Ops& ops)
      : spec_(spec), shard_(shard), ops_(ops), loader_(checkpoint, ops) {}

  absl::Status LoadEnds(GemmaWeights& weights);
  absl::StatusOr<GemmaLayerWeights> LoadLayer(int64_t index);
  WeightLoader& loader() { return loader_; }

 private:
  absl::StatusOr<DeviceBuffer> LoadNorm(const std::string& tensor) {
    return loader_.LoadVector({Vector(tensor, spec_.hidden)});
  }
  absl::Status LoadMlp(const std::string& gate, const std::string& up, const std::string& down, GemmaMlpWeights& mlp);
  absl::Status LoadAttention(const GemmaLayerTensors& tensors, bool full, GemmaLayerWeights& layer);
  absl::Status LoadExperts(const GemmaLayerTensors& tensors, GemmaLayerWeights& layer);
  absl::Status LoadExpert(const GemmaLayerTensors& tensors, int64_t expert, ExpertWeights& experts);

  const ModelSpec& spec_;
  const Shard& shard_;
  Ops& ops_;
  WeightLoader loader_;
};

absl::Status GemmaLoader::LoadMlp(const std::string& gate, const std::string& up, const std::string& down,
                                  GemmaMlpWeights& mlp) {
  const int64_t first = shard_.first_shared_mlp, width = shard_.shared_mlp, H = spec_.hidden;
  ASSIGN_OR_RETURN(mlp.gate_up, loader_.LoadMatrix({{gate, first, width, 0, H}, {up, first, width, 0, H}}, 2 * width,
                                                   WeightRole::kLayer));
  ASSIGN_OR_RETURN(mlp.down, loader_.LoadMatrix({{down, 0, H, first, width}}, H, WeightRole::kLayer));
  return absl::OkStatus();
}

absl::Status GemmaLoader::LoadAttention(const GemmaLayerTensors& tensors, bool full, GemmaLayerWeights& layer) {
  const int64_t H = spec_.hidden, hd = full ? spec_.gemma.head_size : spec_.head_size;
  const int64_t first_q = shard_.first_head * hd, q_rows = shard_.heads * hd;
  const int64_t first_kv = (full ? shard_.first_full_kv_head : shard_.first_kv_head) * hd;
  const int64_t kv_rows = (full ? shard_.full_kv_heads : shard_.kv_heads) * hd;
  ASSIGN_OR_RETURN(layer.attention_norm, LoadNorm(tensors.attention_norm));
  ASSIGN_OR_RETURN(layer.qkv, loader_.LoadMatrix({{tensors.q, first_q, q_rows, 0, H},
                                                  {tensors.k, first_kv, kv_rows, 0, H},
                                                  {tensors.v, first_kv, kv_rows, 0, H}},
                                                 q_rows + 2 * kv_rows, WeightRole::kLayer));
  ASSIGN_OR_RETURN(layer.q_norm, loader_.LoadVector({Vector(tensors.q_norm, hd)}));
  ASSIGN_OR_RETURN(layer.k_norm, loader_.LoadVector({Vector(tensors.k_norm, hd)}));
  ASSIGN_OR_RETURN(layer.out, loader_.LoadMatrix({{tensors.out, 0, H, first_q, q_rows}}, H, WeightRole::kLayer));
  ASSIGN_OR_RETURN(layer.post_attention_norm, LoadNorm(tensors.post_attention_norm));
  return absl::OkStatus();
}

absl::Status GemmaLoader::LoadExpert(const GemmaLayerTensors& tensors, int64_t expert, ExpertWeights& experts) {
  const int64_t Im = spec_.moe.mlp, first = shard_.first_expert_mlp, width = shard_.expert_mlp, H = spec_.hidden;
  const int64_t gate = expert * 2 * Im + first;
  const auto number = static_cast<int32_t>(expert);
  RETURN_IF_ERROR(loader_.LoadExpert(
      {{tensors.expert_gate_up, gate, width, 0, H}, {tensors.expert_gate_up, gate + Im, width, 0, H}}, number,
      ExpertMatrix::kGateUp, experts));
  return loader_.LoadExpert({{tensors.expert_down, expert * H, H, first, width}}, number, ExpertMatrix::kDown, experts);
}

absl::Status GemmaLoader::LoadExperts(const GemmaLayerTensors& tensors, GemmaLayerWeights& layer) {
  const int64_t experts = spec_.moe.experts, H = spec_.hidden;
  const float root = 1.0f / std::sqrt(static_cast<float>(H));
  ASSIGN_OR_RETURN(layer.expert_norm, LoadNorm(tensors.expert_norm));
  ASSIGN_OR_RETURN(layer.post_expert_norm, LoadNorm(tensors.post_expert_norm));
  ASSIGN_OR_RETURN(layer.router_gain, loader_.LoadVector({Vector(tensors.router_scale, H)}, root));
  ASSIGN_OR_RETURN(layer.expert_scale, loader_.LoadVector({Vector(tensors.expert_scale, experts)}));
  ASSIGN_OR_RETURN(layer.moe.router,
                   loader_.LoadMatrix({{tensors.router, 0, experts, 0, H}}, experts, WeightRole::kHead));
  ASSIGN_OR_RETURN(layer.moe.experts, ops_.PrepareExperts({.first = static_cast<int32_t>(shard_.first_expert),
                                                           .count = static_cast<int32_t>(shard_.experts),
                                                           .hidden = H,
                                                           .mlp = shard_.expert_mlp}));
  for (int64_t expert = shard_.first_expert; expert < shard_.first_expert + shard_.experts; ++expert) {
    RETURN_IF_ERROR(LoadExpert(tensors, expert, *layer.moe.experts));
  }
  loader_.CountDevice(layer.moe.experts->bytes());
  return absl::OkStatus();
}

absl::StatusOr<GemmaLayerWeights> GemmaLoader::LoadLayer(int64_t index) {
  const GemmaLayerTensors tensors = GemmaTensorsOfLayer(spec_, index);
  GemmaLayerWeights layer;
  RETURN_IF_ERROR(LoadAttention(tensors, spec_.gemma.full[static_cast<size_t>(index)] != 0, layer));
  ASSIGN_OR_RETURN(layer.mlp_norm, LoadNorm(tensors.mlp_norm));
  RETURN_IF_ERROR(LoadMlp(tensors.gate, tensors.up, tensors.down, layer.mlp));
  ASSIGN_OR_RETURN(layer.post_mlp_norm, LoadNorm(tensors.post_mlp_norm));
  RETURN_IF_ERROR(LoadExperts(tensors, layer));
  ASSIGN_OR_RETURN(layer.post_norm, LoadNorm(tensors.post_norm));
  ASSIGN_OR_RETURN(layer.layer_scale, loader_.LoadVector({Vector(tensors.layer_scale, 1)}));
  return layer;
}

absl::Status GemmaLoader::LoadEnds(GemmaWeights& weights) {
  const std::vector<ExpectedTensor> tensors = GemmaExpectedTensors(spec_);
  const std::string& embedding = tensors.front().name;
  const int64_t H = spec_.hidden;
  const bool whole = shard_.embedding_replicated;
  weights.embedding_first_id = whole ? 0 : shard_.first_id;
  const Band table{embedding, weights.embedding_first_id, whole ? spec_.vocabulary : shard_.stored_rows, 0, H};
  ASSIGN_OR_RETURN(weights.embedding_memory,
                   loader_.LoadTable(table, whole ? spec_.vocabulary : shard_.vocabulary_rows, &weights.embedding));
  ASSIGN_OR_RETURN(weights.lm_head, loader_.LoadMatrix({{embedding, shard_.first_id, shard_.stored_rows, 0, H}},
                                                       shard_.vocabulary_rows, WeightRole::kHead));
  ASSIGN_OR_RETURN(weights.final_norm, LoadNorm(tensors.back().name));
  const GemmaConditioningTensors conditioning = GemmaTensorsOfConditioning();
  ASSIGN_OR_RETURN(weights.conditioning_norm, LoadNorm(conditioning.norm));
  RETURN_IF_ERROR(LoadMlp(conditioning.gate, conditioning.up, conditioning.down, weights.conditioning));
  const float scale = RoundToBf16(std::sqrt(static_cast<float>(H)));
  ASSIGN_OR_RETURN(weights.embedding_scale, ops_.Allocate(sizeof scale));
  ops_.Upload(&scale, weights.embedding_scale.data(), sizeof scale);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GemmaWeights> LoadGemmaWeights(const ModelSpec& spec, const Shard& shard, const Checkpoint& checkpoint,
                                              Ops& ops, const LoadProgress& progress) {
  const size_t total = BudgetOf(spec, shard, ops.activation_dtype()).weight_bytes;
  GemmaLoader loader(spec, shard, checkpoint, ops);
  GemmaWeights weights;
  RETURN_IF_ERROR(loader.LoadEnds(weights));
  for (int64_t i = 0; i < spec.layers; ++i) {
    ASSIGN_OR_RETURN(GemmaLayerWeights layer, loader.LoadLayer(i));
    weights.layers.push_back(std::move(layer));
    if (progress) progress(loader.loader().staged_bytes(), total);
  }
  weights.bytes = loader.loader().device_bytes();
  return weights;
}

}  // namespace quicksilver
