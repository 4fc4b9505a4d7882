#include "worker/model/weights.h"

#include <cstdint>
#include <string>
#include <utility>

#include "common/status_macros.h"
#include "worker/model/tensor_plan.h"
#include "worker/model/weight_loader.h"

namespace quicksilver {
namespace {

/// Each rank holds whole heads: their rows of q, k and v, their columns of the output's projection.
absl::Status LoadAttention(const ModelSpec& spec, const Shard& shard, const LayerTensors& tensors, WeightLoader& loader,
                           LayerWeights& layer) {
  const int64_t hd = spec.head_size;
  const int64_t first_q = shard.first_head * hd, first_kv = shard.first_kv_head * hd;
  const int64_t q_rows = shard.heads * hd, kv_rows = shard.kv_heads * hd;
  ASSIGN_OR_RETURN(layer.attention_norm, loader.LoadVector({Vector(tensors.attention_norm, spec.hidden)}));
  ASSIGN_OR_RETURN(layer.qkv, loader.LoadMatrix({RowsOf(tensors.q, first_q, q_rows, spec.hidden),
                                                 RowsOf(tensors.k, first_kv, kv_rows, spec.hidden),
                                                 RowsOf(tensors.v, first_kv, kv_rows, spec.hidden)},
                                                q_rows + 2 * kv_rows, WeightRole::kLayer));
  if (spec.qkv_bias) {
    ASSIGN_OR_RETURN(layer.qkv_bias, loader.LoadVector({{tensors.q_bias, 0, 1, first_q, q_rows},
                                                        {tensors.k_bias, 0, 1, first_kv, kv_rows},
                                                        {tensors.v_bias, 0, 1, first_kv, kv_rows}}));
  }
  if (spec.head_norms) {
    ASSIGN_OR_RETURN(layer.q_norm, loader.LoadVector({Vector(tensors.q_norm, hd)}));
    ASSIGN_OR_RETURN(layer.k_norm, loader.LoadVector({Vector(tensors.k_norm, hd)}));
  }
  const Band out{tensors.attention_out, 0, spec.hidden, first_q, q_rows};
  ASSIGN_OR_RETURN(layer.out, loader.LoadMatrix({out}, out.rows, WeightRole::kLayer));
  return absl::OkStatus();
}

/// Columns [first, first + width) of a dense MLP or of the shared expert.
absl::Status LoadMlp(const ModelSpec& spec, const MlpParts& parts, int64_t first, int64_t width, WeightLoader& loader,
                     LayerWeights& layer) {
  ASSIGN_OR_RETURN(layer.gate_up, loader.LoadMatrix({RowsOf(parts.gate, first, width, spec.hidden),
                                                     RowsOf(parts.up, first, width, spec.hidden)},
                                                    2 * width, WeightRole::kLayer));
  ASSIGN_OR_RETURN(layer.down, loader.LoadMatrix({ColumnsOf(parts.down, spec.hidden, first, width)}, spec.hidden,
                                                 WeightRole::kLayer));
  return absl::OkStatus();
}

/// The router is kept as precise as the LM head: small differences between its logits decide which experts are chosen.
absl::StatusOr<std::unique_ptr<MoeWeights>> LoadMoe(const ModelSpec& spec, const Shard& shard, int64_t index,
                                                    const LayerTensors& tensors, WeightLoader& loader, Ops& ops) {
  const int64_t experts = spec.moe.experts;
  auto moe = std::make_unique<MoeWeights>();
  ASSIGN_OR_RETURN(moe->router,
                   loader.LoadMatrix({{tensors.router, 0, experts, 0, spec.hidden}}, experts, WeightRole::kHead));
  if (spec.moe.expert_bias) {
    ASSIGN_OR_RETURN(moe->expert_bias, loader.LoadVector({Vector(tensors.expert_bias, experts)}));
  }
  ASSIGN_OR_RETURN(moe->experts, ops.PrepareExperts({.first = static_cast<int32_t>(shard.first_expert),
                                                     .count = static_cast<int32_t>(shard.experts),
                                                     .hidden = spec.hidden,
                                                     .mlp = shard.expert_mlp}));
  for (int64_t expert = shard.first_expert; expert < shard.first_expert + shard.experts; ++expert) {
    const MlpParts parts = TensorsOfExpert(spec, index, expert);
    const int64_t first = shard.first_expert_mlp, width = shard.expert_mlp;
    const auto number = static_cast<int32_t>(expert);
    RETURN_IF_ERROR(
        loader.LoadExpert({RowsOf(parts.gate, first, width, spec.hidden), RowsOf(parts.up, first, width, spec.hidden)},
                          number, ExpertMatrix::kGateUp, *moe->experts));
    RETURN_IF_ERROR(loader.LoadExpert({ColumnsOf(parts.down, spec.hidden, first, width)}, number, ExpertMatrix::kDown,
                                      *moe->experts));
  }
  loader.CountDevice(moe->experts->bytes());
  return moe;
}

absl::StatusOr<LayerWeights> LoadLayer(const ModelSpec& spec, const Shard& shard, int64_t index, WeightLoader& loader,
                                       Ops& ops) {
  const LayerTensors tensors = TensorsOfLayer(spec, index);
  LayerWeights layer;
  RETURN_IF_ERROR(LoadAttention(spec, shard, tensors, loader, layer));
  ASSIGN_OR_RETURN(layer.mlp_norm, loader.LoadVector({Vector(tensors.mlp_norm, spec.hidden)}));
  if (!HasExperts(spec, index)) {
    RETURN_IF_ERROR(LoadMlp(spec, tensors.mlp, shard.first_mlp, shard.mlp, loader, layer));
    return layer;
  }
  if (shard.shared_mlp > 0) {
    RETURN_IF_ERROR(LoadMlp(spec, tensors.mlp, shard.first_shared_mlp, shard.shared_mlp, loader, layer));
  }
  ASSIGN_OR_RETURN(layer.moe, LoadMoe(spec, shard, index, tensors, loader, ops));
  return layer;
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const ModelSpec& spec, const Shard& shard, const Checkpoint& checkpoint,
                                         Ops& ops, const LoadProgress& progress) {
  const std::vector<ExpectedTensor> tensors = ExpectedTensors(spec);
  const std::string& embedding = tensors.front().name;
  const std::string& lm_head = spec.tied ? embedding : tensors.back().name;
  const std::string& final_norm = tensors[tensors.size() - (spec.tied ? 1 : 2)].name;
  const size_t total = BudgetOf(spec, shard, ops.activation_dtype()).weight_bytes;
  WeightLoader loader(checkpoint, ops);
  const auto report = [&](size_t done) {
    if (progress) progress(done, total);
  };

  ModelWeights weights;
  const bool whole = shard.embedding_replicated;
  weights.embedding_first_id = whole ? 0 : shard.first_id;
  const Band table{embedding, weights.embedding_first_id, whole ? spec.vocabulary : shard.stored_rows, 0, spec.hidden};
  ASSIGN_OR_RETURN(weights.embedding_memory,
                   loader.LoadTable(table, whole ? spec.vocabulary : shard.vocabulary_rows, &weights.embedding));
  for (int64_t i = 0; i < spec.layers; ++i) {
    ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(spec, shard, i, loader, ops));
    weights.layers.push_back(std::move(layer));
    report(loader.staged_bytes());
  }
  ASSIGN_OR_RETURN(weights.final_norm, loader.LoadVector({Vector(final_norm, spec.hidden)}));
  const Band head{lm_head, shard.first_id, shard.stored_rows, 0, spec.hidden};
  ASSIGN_OR_RETURN(weights.lm_head, loader.LoadMatrix({head}, shard.vocabulary_rows, WeightRole::kHead));
  weights.bytes = loader.device_bytes();
  report(loader.staged_bytes());
  return weights;
}

}  // namespace quicksilver
