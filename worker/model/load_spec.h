#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

struct SpecOptions {
  /// 0: what config.json says, else the family's default. Checkpoints often do not state the block they were trained
  /// with.
  int32_t block_length = 0;
  /// -1: what the checkpoint says. Checkpoints without a tokenizer may not state their mask.
  TokenId mask_id = -1;
  /// Whole experts by rank instead of columns of all.
  bool expert_parallel = false;
};

/// Reads the spec of a checkpoint: config.json, generation_config.json, the special tokens of tokenizer.json (the last
/// two may be absent), and from the tensors the dtype, the format of the experts and, where config.json is silent,
/// whether the LM head is tied.
/// InvalidArgument, one line naming file, field, expected, found: an architecture or a field we do not support, a size
/// out of bounds, no mask token, options that contradict the checkpoint. The tensors are left to CheckCheckpoint().
absl::StatusOr<ModelSpec> LoadModelSpec(const Checkpoint& checkpoint, const SpecOptions& options = {});

}  // namespace quicksilver
