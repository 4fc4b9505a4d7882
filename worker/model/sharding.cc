#include "worker/model/sharding.h"

#include <algorithm>

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

}  // namespace

absl::StatusOr<Shard> MakeShard(const ModelSpec& spec, int rank, int ranks) {
  if (ranks < 1 || ranks > kTensorParallelMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_parallel_size: expected 1 to ", kTensorParallelMax, ", found ", ranks));
  }
  CHECK(rank >= 0 && rank < ranks);
  RETURN_IF_ERROR(CheckDivides(ranks, "query heads", spec.heads));
  RETURN_IF_ERROR(CheckDivides(ranks, "MLP columns", spec.mlp));
  if (spec.kv_heads % ranks != 0 && ranks % spec.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor_parallel_size ", ranks,
                                                   ": expected a divisor or a multiple of the ", spec.kv_heads,
                                                   " KV heads, found neither"));
  }
  Shard shard;
  shard.rank = rank;
  shard.ranks = ranks;
  shard.heads = spec.heads / ranks;
  shard.first_head = rank * shard.heads;
  shard.kv_heads = std::max<int64_t>(1, spec.kv_heads / ranks);
  shard.first_kv_head = rank * spec.kv_heads / ranks;
  shard.mlp = spec.mlp / ranks;
  shard.first_mlp = rank * shard.mlp;
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
  const int64_t qkv_width = (shard.heads + 2 * shard.kv_heads) * spec.head_size;
  const int64_t layer_matrix = spec.hidden * (qkv_width + shard.heads * spec.head_size + 3 * shard.mlp);
  const int64_t layer_gains = 2 * spec.hidden + (spec.head_norms ? 2 * spec.head_size : 0);
  const int64_t matrices = spec.layers * layer_matrix + shard.vocabulary_rows * spec.hidden;
  const int64_t gains = spec.layers * layer_gains + spec.hidden;
  const int64_t table_rows = shard.embedding_replicated ? spec.vocabulary : shard.vocabulary_rows;
  RankBudget budget;
  budget.step_weight_bytes = matrices * stored + gains * static_cast<int64_t>(sizeof(float));
  budget.weight_bytes = budget.step_weight_bytes + table_rows * spec.hidden * stored;
  budget.kv_position_bytes = 2 * spec.layers * shard.kv_heads * spec.head_size * active;
  budget.all_reduces = shard.ranks == 1 ? 0 : 2 * spec.layers + (shard.embedding_replicated ? 0 : 1);
  budget.all_reduce_row_bytes = budget.all_reduces * spec.hidden * active;
  budget.row_flops = 2 * matrices;
  budget.attention_flops = 4 * spec.layers * shard.heads * spec.head_size;
  return budget;
}

int64_t DeviceWeightBytes(const ModelSpec& spec, const Shard& shard, DType activations, bool fp8_layers) {
  const int64_t stored = static_cast<int64_t>(ElementBytes(spec.checkpoint_dtype));
  const int64_t active = static_cast<int64_t>(ElementBytes(activations));
  const int64_t qkv_width = (shard.heads + 2 * shard.kv_heads) * spec.head_size;
  const int64_t layer_elements = spec.hidden * (qkv_width + shard.heads * spec.head_size + 3 * shard.mlp);
  const int64_t layer_channels = qkv_width + 2 * spec.hidden + 2 * shard.mlp;
  const int64_t layer =
      fp8_layers ? layer_elements + layer_channels * static_cast<int64_t>(sizeof(float)) : layer_elements * active;
  const int64_t gains = (2 * spec.layers + 1) * spec.hidden + (spec.head_norms ? 2 * spec.layers * spec.head_size : 0);
  const int64_t table_rows = shard.embedding_replicated ? spec.vocabulary : shard.vocabulary_rows;
  return spec.layers * layer + shard.vocabulary_rows * spec.hidden * active + table_rows * spec.hidden * stored +
         gains * static_cast<int64_t>(sizeof(float));
}

}  // namespace quicksilver
