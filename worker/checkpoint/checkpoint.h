#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver {

/// Element types of the safetensors format that we read.
enum class StoredType { kF32, kBf16, kF16 };

/// One tensor of a checkpoint: a view into the mapped file, row-major, little-endian.
struct StoredTensor {
  std::string name;
  std::string file;  ///< For messages.
  StoredType type = StoredType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

/// A checkpoint directory in the Hugging Face layout: config.json and one `model.safetensors` or shards with
/// `model.safetensors.index.json`. Files are mapped read-only, nothing is copied; headers are validated completely at
/// Open (bounds, overlaps, holes, duplicates, types, sizes), so a view can be read without further checks.
class Checkpoint {
 public:
  /// NotFound: no directory or file. InvalidArgument: anything malformed; one line that names file, tensor, expected
  /// and found.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  virtual ~Checkpoint() = default;

  virtual const std::string& directory() const = 0;
  virtual const std::string& config_text() const = 0;                   ///< config.json
  virtual const std::vector<StoredTensor>& tensors() const = 0;         ///< By name.
  virtual const StoredTensor* Find(const std::string& name) const = 0;  ///< nullptr when absent.
  /// Hex SHA-256 over config.json and all tensor headers and data files' sizes; with `whole`, over all data too.
  virtual std::string Digest(bool whole) const = 0;
};

}  // namespace quicksilver
