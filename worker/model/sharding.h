#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

inline constexpr int kTensorParallelMax = 64;

/// Below this size every rank keeps the whole embedding and saves an all-reduce.
inline constexpr int64_t kReplicatedEmbeddingBytesMax = 8 << 20;

/// What one rank of a group holds (models.md §9.1, §9.4). Half-open runs of heads, MLP columns and vocabulary rows.
struct Shard {
  int rank = 0;
  int ranks = 1;
  int64_t first_head = 0;
  int64_t heads = 0;  ///< nh / tp
  int64_t first_kv_head = 0;
  int64_t kv_heads = 0;            ///< nkv / tp; 1 when tp > nkv: a head then lives on tp / nkv ranks.
  int64_t first_full_kv_head = 0;  ///< The same of GemmaSpec's full layers.
  int64_t full_kv_heads = 0;
  int64_t first_mlp = 0;
  int64_t mlp = 0;           ///< I / tp
  int64_t first_expert = 0;  ///< Of the experts that the rank holds, whole or in part.
  int64_t experts = 0;       ///< E, or E / tp with expert_parallel; 0 without experts.
  int64_t first_expert_mlp = 0;
  int64_t expert_mlp = 0;  ///< Im / tp, or Im with expert_parallel.
  int64_t first_shared_mlp = 0;
  int64_t shared_mlp = 0;       ///< Width of the shared expert / tp, in either case.
  int64_t first_id = 0;         ///< Of the LM head's rows.
  int64_t vocabulary_rows = 0;  ///< V / tp rounded up, equal on all ranks: the last rank's may be padding.
  int64_t stored_rows = 0;      ///< Those of them that the checkpoint has.
  bool embedding_replicated = false;
};

/// InvalidArgument, with the numbers: heads, KV heads, MLP columns, or experts or their columns, that `ranks` cannot
/// share.
absl::StatusOr<Shard> MakeShard(const ModelSpec& spec, int rank, int ranks);

/// What a rank needs, for budgets and the floor of a step (models.md §9.2, architecture.md §6).
struct RankBudget {
  int64_t weight_bytes = 0;          ///< As stored; an implementation of Ops may keep weights wider.
  int64_t step_weight_bytes = 0;     ///< Of them, read by every step: all but the embedding's table and the experts.
  int64_t expert_bytes = 0;          ///< Of them, the experts that routing chooses from, in all layers.
  int64_t kv_position_bytes = 0;     ///< Keys and values of one position in all layers.
  int64_t all_reduces = 0;           ///< A step.
  int64_t all_reduce_row_bytes = 0;  ///< Payload a step and row.
  int64_t row_flops = 0;             ///< Matrix arithmetic of one row with LM head, without attention.
  int64_t attention_flops = 0;       ///< Of one row and visible key.
};

/// Whether a layer mixes experts.
bool HasExperts(const ModelSpec& spec, int64_t layer);

/// The share of a layer's experts that a step of `rows` rows reads on average when choices are even.
double ExpertsTouched(const MoeSpec& moe, int64_t rows);

/// `activations`: dtype of activations and KV cache.
RankBudget BudgetOf(const ModelSpec& spec, const Shard& shard, DType activations);

/// What a device keeps in 8 bits with a float a channel; everything else is in the activation type, but for the
/// embedding, which is as stored.
enum class NarrowWeights : uint8_t { kNone, kDenseLayers, kLayersAndExperts };

/// Weights of a rank on a device.
int64_t DeviceWeightBytes(const ModelSpec& spec, const Shard& shard, DType activations, NarrowWeights narrow);

}  // namespace quicksilver
