#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_spec.h"
#include "worker/model/sharding.h"

namespace quicksilver {

/// One rank's share of the routed experts of one layer.
struct MoeWeights {
  std::unique_ptr<GemmWeight> router;      ///< [E, H], equal on all ranks.
  DeviceBuffer expert_bias;                ///< [E], with expert_bias.
  std::unique_ptr<ExpertWeights> experts;  ///< E/tp of them, or of each Im/tp columns.
};

/// One rank's slices of one layer, in device memory. Gains and biases are floats.
struct LayerWeights {
  DeviceBuffer attention_norm;          ///< [H]
  std::unique_ptr<GemmWeight> qkv;      ///< [(nh + 2 nkv) hd / tp, H]: queries, keys, values.
  DeviceBuffer qkv_bias;                ///< [(nh + 2 nkv) hd / tp], with qkv_bias.
  DeviceBuffer q_norm;                  ///< [hd], with head_norms.
  DeviceBuffer k_norm;                  ///< [hd], with head_norms.
  std::unique_ptr<GemmWeight> out;      ///< [H, nh hd / tp]
  DeviceBuffer mlp_norm;                ///< [H]
  std::unique_ptr<GemmWeight> gate_up;  ///< [2 I / tp, H]: gate, then up. Of the shared expert in a layer of experts.
  std::unique_ptr<GemmWeight> down;     ///< [H, I / tp]
  std::unique_ptr<MoeWeights> moe;      ///< Null: a dense layer.
};

struct ModelWeights {
  DeviceBuffer embedding_memory;
  ConstMatrix embedding;  ///< [V or V/tp, H] in the checkpoint's dtype.
  int64_t embedding_first_id = 0;
  std::vector<LayerWeights> layers;
  DeviceBuffer final_norm;              ///< [H]
  std::unique_ptr<GemmWeight> lm_head;  ///< [V/tp, H], rows beyond the vocabulary zero.
  size_t bytes = 0;                     ///< Device memory of all of them.
};

/// Called after every layer and at the end. Both count bytes of this rank's slices.
using LoadProgress = std::function<void(size_t done, size_t total)>;

/// Reads the slices of `shard`, one matrix at a time, so that the host holds at most one of them besides the device's.
/// Requires: CheckCheckpoint() passed. ResourceExhausted: does not fit. DataLoss: the storage fails.
absl::StatusOr<ModelWeights> LoadWeights(const ModelSpec& spec, const Shard& shard, const Checkpoint& checkpoint,
                                         Ops& ops, const LoadProgress& progress);

}  // namespace quicksilver
