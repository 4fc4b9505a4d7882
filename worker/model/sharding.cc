#include "worker/model/sharding.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

absl::Status CheckDivides(int ranks, const char* what, int64_t count) {
  if (count % ranks == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor_parallel_size ", ranks, ": expected a divisor of the ", count,
                                                 " ", what, ", found remainder ", count % ranks));
}

absl::Status CheckKvHeads(int ranks, const char* what, int64_t count) {
  if (count % ranks == 0 || ranks % count == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor_parallel_size ", ranks,
                                                 ": expected a divisor or a multiple of the ", count, " ", what,
                                                 ", found neither"));
}

absl::Status CheckShares(const ModelSpec& spec, int ranks) {
  RETURN_IF_ERROR(CheckDivides(ranks, "query heads", spec.heads));
  RETURN_IF_ERROR(CheckDivides(ranks, "MLP columns", spec.mlp));
  if (spec.moe.expert_parallel) {
    RETURN_IF_ERROR(CheckDivides(ranks, "experts (num_experts, under --expert-parallel)", spec.moe.experts));
  } else {
    RETURN_IF_ERROR(CheckDivides(ranks, "MLP columns of an expert", spec.moe.mlp));
  }
  RETURN_IF_ERROR(CheckDivides(ranks, "MLP columns of the shared expert", spec.moe.shared_mlp));
  RETURN_IF_ERROR(CheckKvHeads(ranks, "KV heads", spec.kv_heads));
  return spec.gemma.present() ? CheckKvHeads(ranks, "KV heads of a full layer", spec.gemma.kv_heads) : absl::OkStatus();
}

/// One rank's heads of a layer.
struct LayerHeads {
  int64_t kv_heads = 0;
  int64_t head_size = 0;
};

LayerHeads HeadsOfLayer(const ModelSpec& spec, const Shard& shard, int64_t layer) {
  const bool full = spec.gemma.present() && spec.gemma.full[static_cast<size_t>(layer)] != 0;
  if (full) return {shard.full_kv_heads, spec.gemma.head_size};
  return {shard.kv_heads, spec.head_size};
}

/// Elements of a rank's weights.
struct Elements {
  int64_t layers = 0;           ///< Matrices that every row goes through, in all layers.
  int64_t layer_channels = 0;   ///< Their rows.
  int64_t routers = 0;          ///< Matrices, too.
  int64_t experts = 0;          ///< In all layers.
  int64_t expert_channels = 0;  ///< Their rows.
  int64_t head = 0;
  int64_t table = 0;
  int64_t vectors = 0;  ///< Gains and biases.
};

Elements ElementsOf(const ModelSpec& spec, const Shard& shard) {
  const MoeSpec& moe = spec.moe;
  const int64_t moe_layers = moe.experts == 0 ? 0 : std::max<int64_t>(0, spec.layers - moe.first_layer);
  const int64_t dense_layers = spec.layers - moe_layers;
  int64_t query_widths = 0, qkv_widths = 0, head_norms = 0;  // In all layers.
  for (int64_t i = 0; i < spec.layers; ++i) {
    const LayerHeads heads = HeadsOfLayer(spec, shard, i);
    query_widths += shard.heads * heads.head_size;
    qkv_widths += (shard.heads + 2 * heads.kv_heads) * heads.head_size;
    if (spec.head_norms) head_norms += 2 * heads.head_size;
  }
  const int64_t conditioning = spec.gemma.present() ? 1 : 0;                                       // Its MLP.
  const int64_t mlps = dense_layers * shard.mlp + (moe_layers + conditioning) * shard.shared_mlp;  // Columns in all.
  const int64_t downs = dense_layers + (shard.shared_mlp > 0 ? moe_layers : 0) + conditioning;
  Elements elements;
  elements.layers = spec.hidden * (qkv_widths + query_widths + 3 * mlps);
  elements.layer_channels = qkv_widths + spec.layers * spec.hidden + 2 * mlps + downs * spec.hidden;
  elements.routers = moe_layers * moe.experts * spec.hidden;
  elements.experts = moe_layers * shard.experts * 3 * shard.expert_mlp * spec.hidden;
  elements.expert_channels = moe_layers * shard.experts * (2 * shard.expert_mlp + spec.hidden);
  elements.head = shard.vocabulary_rows * spec.hidden;
  elements.table = (shard.embedding_replicated ? spec.vocabulary : shard.vocabulary_rows) * spec.hidden;
  const int64_t norms = spec.gemma.present() ? 8 * spec.layers + 2 : 2 * spec.layers + 1;  // The router's among them.
  elements.vectors = norms * spec.hidden + head_norms + (spec.qkv_bias ? qkv_widths : 0) +
                     (moe.expert_bias ? moe_layers * moe.experts : 0);
  if (spec.gemma.present()) elements.vectors += spec.layers * (moe.experts + 1);
  return elements;
}

constexpr int64_t kFloatBytes = sizeof(float);

}  // namespace

bool HasExperts(const ModelSpec& spec, int64_t layer) { return spec.moe.experts > 0 && layer >= spec.moe.first_layer; }

double ExpertsTouched(const MoeSpec& moe, int64_t rows) {
  if (moe.experts == 0) return 0.0;
  const double missed = 1.0 - static_cast<double>(moe.routing.chosen) / static_cast<double>(moe.experts);
  return 1.0 - std::pow(missed, static_cast<double>(rows));
}

absl::StatusOr<Shard> MakeShard(const ModelSpec& spec, int rank, int ranks) {
  if (ranks < 1 || ranks > kTensorParallelMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_parallel_size: expected 1 to ", kTensorParallelMax, ", found ", ranks));
  }
  CHECK(rank >= 0 && rank < ranks);
  RETURN_IF_ERROR(CheckShares(spec, ranks));
  Shard shard;
  shard.rank = rank;
  shard.ranks = ranks;
  shard.heads = spec.heads / ranks;
  shard.first_head = rank * shard.heads;
  shard.kv_heads = std::max<int64_t>(1, spec.kv_heads / ranks);
  shard.first_kv_head = rank * spec.kv_heads / ranks;
  if (spec.gemma.present()) {
    shard.full_kv_heads = std::max<int64_t>(1, spec.gemma.kv_heads / ranks);
    shard.first_full_kv_head = rank * spec.gemma.kv_heads / ranks;
  }
  shard.mlp = spec.mlp / ranks;
  shard.first_mlp = rank * shard.mlp;
  shard.experts = spec.moe.expert_parallel ? spec.moe.experts / ranks : spec.moe.experts;
  shard.first_expert = spec.moe.expert_parallel ? rank * shard.experts : 0;
  shard.expert_mlp = spec.moe.expert_parallel ? spec.moe.mlp : spec.moe.mlp / ranks;
  shard.first_expert_mlp = spec.moe.expert_parallel ? 0 : rank * shard.expert_mlp;
  shard.shared_mlp = spec.moe.shared_mlp / ranks;
  shard.first_shared_mlp = rank * shard.shared_mlp;
  shard.vocabulary_rows = (spec.vocabulary + ranks - 1) / ranks;
  shard.first_id = rank * shard.vocabulary_rows;
  shard.stored_rows = std::clamp<int64_t>(spec.vocabulary - shard.first_id, 0, shard.vocabulary_rows);
  const int64_t table_bytes = spec.vocabulary * spec.hidden * static_cast<int64_t>(ElementBytes(spec.checkpoint_dtype));
  shard.embedding_replicated = ranks == 1 || table_bytes <= kReplicatedEmbeddingBytesMax;
  return shard;
}

RankBudget BudgetOf(const ModelSpec& spec, const Shard& shard, DType activations) {
  const int64_t stored = static_cast<int64_t>(ElementBytes(spec.checkpoint_dtype));
  const int64_t active = static_cast<int64_t>(ElementBytes(activations));
  const Elements elements = ElementsOf(spec, shard);
  const int64_t matrices = elements.layers + elements.routers + elements.head;
  RankBudget budget;
  budget.step_weight_bytes = matrices * stored + elements.vectors * kFloatBytes;
  budget.expert_bytes = elements.experts * stored;
  budget.weight_bytes = budget.step_weight_bytes + budget.expert_bytes + elements.table * stored;
  int64_t head_widths = 0;
  for (int64_t i = 0; i < spec.layers; ++i) {
    const LayerHeads heads = HeadsOfLayer(spec, shard, i);
    budget.kv_position_bytes += 2 * heads.kv_heads * heads.head_size * active;
    head_widths += shard.heads * heads.head_size;
  }
  int64_t sums = 2 * spec.layers;
  budget.all_reduces = 2 * spec.layers + (shard.embedding_replicated ? 0 : 1);
  if (spec.gemma.present()) {
    // What a step expected of a position stands beside its keys. Dense and routed sums share a call.
    budget.kv_position_bytes += spec.hidden * active;
    budget.all_reduces += 2;
    sums = 3 * spec.layers + 2;
  }
  sums += shard.embedding_replicated ? 0 : 1;
  if (shard.ranks == 1) budget.all_reduces = sums = 0;
  budget.all_reduce_row_bytes = sums * spec.hidden * active;
  // A row goes through k of its layer's experts, of which a rank of an expert-parallel group holds its share on
  // average.
  const int64_t routed = spec.moe.experts == 0 ? 0 : elements.experts * spec.moe.routing.chosen / spec.moe.experts;
  budget.row_flops = 2 * (matrices + routed);
  budget.attention_flops = 4 * head_widths;
  return budget;
}

int64_t DeviceWeightBytes(const ModelSpec& spec, const Shard& shard, DType activations, NarrowWeights narrow) {
  const int64_t stored = static_cast<int64_t>(ElementBytes(spec.checkpoint_dtype));
  const int64_t active = static_cast<int64_t>(ElementBytes(activations));
  const Elements elements = ElementsOf(spec, shard);
  const auto bytes = [&](int64_t count, int64_t channels, bool narrowed) {
    return narrowed ? count + channels * kFloatBytes : count * active;
  };
  return bytes(elements.layers, elements.layer_channels, narrow != NarrowWeights::kNone) +
         bytes(elements.experts, elements.expert_channels, narrow == NarrowWeights::kLayersAndExperts) +
         (elements.routers + elements.head) * active + elements.table * stored + elements.vectors * kFloatBytes;
}

}  // namespace quicksilver
