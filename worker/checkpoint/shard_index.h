#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"

namespace quicksilver {

inline constexpr char kWeightsFile[] = "model.safetensors";
inline constexpr char kShardIndexFile[] = "model.safetensors.index.json";
inline constexpr size_t kShardsMax = 4096;

/// The shard that holds each tensor, as model.safetensors.index.json says.
struct ShardIndex {
  std::string file;                               ///< Its path, for messages.
  std::vector<std::string> shards;                ///< Plain file names, ascending.
  std::map<std::string, std::string> weight_map;  ///< Tensor name -> file name.
};

/// InvalidArgument: not an index, a shard's name that is a path, or more than kShardsMax shards. Pure.
absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& file, const std::string& text);

/// Refuses, naming tensor and file, whatever the index and the shards' headers do not agree on. `tensors` by name.
absl::Status CheckAgainstIndex(const ShardIndex& index, const std::vector<StoredTensor>& tensors);

/// Refuses a weight file in `directory` that is not one of `shards` (ascending file names): it would be left out
/// silently.
absl::Status CheckNoOtherShards(const std::string& directory, const std::vector<std::string>& shards);

}  // namespace quicksilver
