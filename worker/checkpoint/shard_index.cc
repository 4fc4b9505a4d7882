#include "worker/checkpoint/shard_index.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/checkpoint/json_file.h"
#include "worker/checkpoint/safetensors.h"

namespace quicksilver {
namespace {

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos && absl::EndsWith(name, ".safetensors");
}

std::string FileName(const char* path) { return std::filesystem::path(path).filename(); }

}  // namespace

absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& file, const std::string& text) {
  ASSIGN_OR_RETURN(const nlohmann::json parsed, ParseJsonObject(file, text));
  const auto map = parsed.find("weight_map");
  if (map == parsed.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": expected a weight_map of tensors, found ",
                                                   map == parsed.end() ? "none" : map->type_name()));
  }
  ShardIndex index;
  index.file = file;
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": tensor '", PrintableName(tensor),
                                                     "': expected the name of a .safetensors file beside the index, ",
                                                     "found ", PrintableName(shard.dump())));
    }
    shards.insert(shard.get<std::string>());
    index.weight_map.emplace(tensor, shard.get<std::string>());
  }
  if (shards.size() > kShardsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": expected at most ", kShardsMax, " shards, found ", shards.size()));
  }
  index.shards.assign(shards.begin(), shards.end());
  return index;
}

absl::Status CheckAgainstIndex(const ShardIndex& index, const std::vector<StoredTensor>& tensors) {
  auto indexed = index.weight_map.begin();
  for (const StoredTensor& tensor : tensors) {
    const bool missing_before = indexed != index.weight_map.end() && indexed->first < tensor.name;
    if (missing_before) break;
    if (indexed == index.weight_map.end() || indexed->first != tensor.name) {
      return absl::InvalidArgumentError(absl::StrCat(tensor.file, ": tensor '", PrintableName(tensor.name),
                                                     "': expected it in ", index.file, ", found it only in the shard"));
    }
    if (indexed->second != FileName(tensor.file)) {
      return absl::InvalidArgumentError(absl::StrCat(index.file, ": tensor '", PrintableName(tensor.name),
                                                     "': expected in ", indexed->second, ", found in ", tensor.file));
    }
    ++indexed;
  }
  if (indexed == index.weight_map.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(index.file, ": tensor '", PrintableName(indexed->first),
                                                 "': expected in ", indexed->second, ", found in no shard"));
}

absl::Status CheckNoOtherShards(const std::string& directory, const std::vector<std::string>& shards) {
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (!absl::StartsWith(name, "model") || !absl::EndsWith(name, ".safetensors")) continue;
    if (std::binary_search(shards.begin(), shards.end(), name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(directory, ": expected the weight files ", shards.front(),
                                                   shards.size() > 1 ? absl::StrCat(" to ", shards.back()) : "",
                                                   ", found also ", name));
  }
  if (!error) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("I/O error reading ", directory, ": ", error.message()));
}

}  // namespace quicksilver
