#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/checkpoint/checkpoint.h"

namespace quicksilver {

/// The sizes of a checkpoint to make up. Defaults: 320 M parameters.
struct RandomCheckpointOptions {
  std::string directory;  ///< Made when absent; files in it are overwritten.
  std::string family = "sdar";
  StoredType type = StoredType::kBf16;
  int64_t hidden = 1024;
  int64_t layers = 16;
  int64_t heads = 16;
  int64_t kv_heads = 8;
  int64_t head_size = 64;  ///< LLaDA: hidden / heads.
  int64_t mlp = 4096;
  int64_t vocabulary = 32768;
  int64_t positions = 4096;
  int64_t block = 8;
  bool tied = false;
  int64_t shards = 1;
  uint64_t seed = 1;
};

/// Writes config.json, generation_config.json and the tensors of a model with random weights, spread so that
/// activations neither vanish nor explode. The mask is the last id, the end token the one before. Equal options give
/// equal bytes. InvalidArgument: sizes that make no model; DataLoss: cannot write.
absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options);

/// The command `random_checkpoint`. Returns the exit code.
int RunRandomCheckpoint(const std::vector<std::string>& args);

}  // namespace quicksilver
