#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver {

/// Element types of the safetensors format that we read.
enum class StoredType : uint8_t { kF32, kBf16, kF16 };

constexpr size_t StoredBytes(StoredType type) { return type == StoredType::kF32 ? 4 : 2; }

/// As safetensors spells it: "F32", "BF16", "F16".
const char* StoredTypeName(StoredType type);

/// Where one tensor of a checkpoint lies: row-major, little-endian. Lives as long as its Checkpoint.
struct StoredTensor {
  std::string name;
  const char* file = "";  ///< Path, for messages.
  std::vector<int64_t> shape;
  uint64_t offset = 0;  ///< Of the first byte in the file.
  uint64_t bytes = 0;
  uint16_t file_index = 0;
  StoredType type = StoredType::kF32;
};

/// A checkpoint directory in the Hugging Face layout: config.json and one `model.safetensors` or shards with
/// `model.safetensors.index.json`. Headers are validated completely at Open (bounds, overlaps, holes, duplicates,
/// types, sizes). Tensor data stays in the files and in the page cache, which all ranks of a node share; it is copied
/// out slice by slice with positional reads and not mapped, so that a file that shrinks or fails is a status instead
/// of a SIGBUS, and its pages do not count as the rank's memory.
class Checkpoint {
 public:
  /// NotFound: no directory or file. PermissionDenied: unreadable. InvalidArgument: anything malformed; one line that
  /// names file, tensor, expected and found. DataLoss: the storage fails.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  virtual ~Checkpoint() = default;

  virtual const std::string& directory() const = 0;
  virtual const std::string& config_text() const = 0;                   ///< config.json
  virtual const std::vector<StoredTensor>& tensors() const = 0;         ///< By name.
  virtual const StoredTensor* Find(const std::string& name) const = 0;  ///< nullptr when absent.

  /// Copies `bytes` bytes of `tensor` from `offset` (within the tensor) on. Thread-safe.
  /// DataLoss "I/O error reading FILE": the storage fails, or the file became shorter since Open.
  virtual absl::Status Read(const StoredTensor& tensor, uint64_t offset, size_t bytes, void* out) const = 0;

  /// Hex SHA-256 over the names and contents of config.json, generation_config.json and tokenizer.json, all tensor
  /// headers and the data files' sizes; with `whole`, over all data too. DataLoss as Read().
  virtual absl::StatusOr<std::string> Digest(bool whole) const = 0;
};

}  // namespace quicksilver
