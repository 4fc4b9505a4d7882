#include "worker/checkpoint/checkpoint.h"

#include <openssl/evp.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/checkpoint/file.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/checkpoint/shard_index.h"

namespace quicksilver {
namespace {

constexpr char kConfigFile[] = "config.json";
constexpr uint64_t kConfigBytesMax = 4 << 20;
constexpr uint64_t kIndexBytesMax = 64 << 20;
constexpr uint64_t kSideFileBytesMax = 256 << 20;
constexpr size_t kReadBytes = 1 << 20;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) { CHECK(EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1); }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(const void* data, size_t bytes) { CHECK(EVP_DigestUpdate(context_, data, bytes) == 1); }
  /// Name and size go first, so that bytes cannot move from one part to the next unseen.
  void AddPart(const std::string& name, uint64_t bytes) {
    const std::string head = absl::StrCat(name, "\n", bytes, "\n");
    Add(head.data(), head.size());
  }
  std::string Finish() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    CHECK(EVP_DigestFinal_ex(context_, digest, &size) == 1);
    return std::string(reinterpret_cast<const char*>(digest), size);
  }

 private:
  EVP_MD_CTX* context_;
};

/// One weight file: its tensors' names are in its header, whose hash stands for it.
struct WeightFile {
  File file;
  std::string name;
  std::string header_hash;
};

absl::Status CheckDirectory(const std::string& directory) {
  struct stat info;
  if (stat(directory.c_str(), &info) != 0) {
    const std::string message = absl::StrCat(directory, ": ", std::strerror(errno));
    return errno == EACCES ? absl::PermissionDeniedError(message) : absl::NotFoundError(message);
  }
  if (S_ISDIR(info.st_mode)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(directory, ": expected a checkpoint directory, found a file"));
}

/// Reads and validates the header of `file`; offsets of the result count from the start of the file.
absl::StatusOr<std::deque<StoredTensor>> ReadHeader(const File& file, std::string* hash) {
  unsigned char prefix[kSafetensorsPrefixBytes];
  if (file.size() < sizeof(prefix)) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": expected at least ", sizeof(prefix),
                                                   " bytes, found ", file.size(), " (is the file truncated?)"));
  }
  RETURN_IF_ERROR(file.ReadAt(0, sizeof(prefix), prefix));
  uint64_t header_bytes = 0;
  for (size_t i = sizeof(prefix); i-- > 0;) header_bytes = header_bytes << 8 | prefix[i];
  const uint64_t rest = file.size() - sizeof(prefix);
  const uint64_t header_bytes_max = std::min(rest, kSafetensorsHeaderBytesMax);
  if (header_bytes > header_bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": expected a header of at most ", header_bytes_max, " bytes, found a length of ",
                     header_bytes, rest < kSafetensorsHeaderBytesMax ? " (is the file truncated?)" : ""));
  }
  std::string header(header_bytes, '\0');
  RETURN_IF_ERROR(file.ReadAt(sizeof(prefix), header.size(), header.data()));
  ASSIGN_OR_RETURN(std::deque<StoredTensor> tensors, ParseSafetensorsHeader(file.path(), header, rest - header_bytes));
  for (StoredTensor& tensor : tensors) tensor.offset += sizeof(prefix) + header_bytes;
  Sha256 sha;
  sha.Add(header.data(), header.size());
  *hash = sha.Finish();
  return tensors;
}

class DirectoryCheckpoint final : public Checkpoint {
 public:
  explicit DirectoryCheckpoint(std::string directory) : directory_(std::move(directory)) {}

  absl::Status Load();

  const std::string& directory() const override { return directory_; }
  const std::string& config_text() const override { return config_text_; }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const StoredTensor* Find(const std::string& name) const override;
  absl::Status Read(const StoredTensor& tensor, uint64_t offset, size_t bytes, void* out) const override;
  absl::StatusOr<std::string> Digest(bool whole) const override;

 private:
  absl::StatusOr<std::optional<ShardIndex>> FindIndex() const;
  absl::Status LoadTensors(const std::vector<std::string>& names);
  absl::Status MissingFile(const std::optional<ShardIndex>& index, const absl::Status& loaded) const;
  std::string PathOf(const std::string& name) const { return absl::StrCat(directory_, "/", name); }

  std::string directory_;
  std::string config_text_;
  std::vector<WeightFile> files_;      // Never moves after Load: tensors_ point to the paths.
  std::vector<StoredTensor> tensors_;  // By name.
};

absl::Status DirectoryCheckpoint::Load() {
  RETURN_IF_ERROR(CheckDirectory(directory_));
  ASSIGN_OR_RETURN(config_text_, ReadSmallFile(PathOf(kConfigFile), kConfigBytesMax));
  ASSIGN_OR_RETURN(const std::optional<ShardIndex> index, FindIndex());
  const std::vector<std::string> names = index ? index->shards : std::vector<std::string>{kWeightsFile};
  const absl::Status loaded = LoadTensors(names);
  if (absl::IsNotFound(loaded)) return MissingFile(index, loaded);
  RETURN_IF_ERROR(loaded);
  if (index) RETURN_IF_ERROR(CheckAgainstIndex(*index, tensors_));
  return CheckNoOtherShards(directory_, names);
}

/// `loaded` names the file alone; the reader also wants to know why it is expected.
absl::Status DirectoryCheckpoint::MissingFile(const std::optional<ShardIndex>& index,
                                              const absl::Status& loaded) const {
  if (!index) {
    return absl::NotFoundError(absl::StrCat(loaded.message(), " (expected it, or shards with ", kShardIndexFile, ")"));
  }
  const auto tensor = std::find_if(index->weight_map.begin(), index->weight_map.end(), [&](const auto& entry) {
    return absl::StartsWith(loaded.message(), absl::StrCat(PathOf(entry.second), ":"));
  });
  CHECK(tensor != index->weight_map.end());
  return absl::NotFoundError(absl::StrCat(loaded.message(), " (", kShardIndexFile, " expects tensor '",
                                          PrintableName(tensor->first), "' in it)"));
}

absl::StatusOr<std::optional<ShardIndex>> DirectoryCheckpoint::FindIndex() const {
  const std::string path = PathOf(kShardIndexFile);
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kIndexBytesMax);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  if (!text.ok()) return text.status();
  ASSIGN_OR_RETURN(ShardIndex index, ParseShardIndex(path, *text));
  return index;
}

absl::Status DirectoryCheckpoint::LoadTensors(const std::vector<std::string>& names) {
  files_.reserve(names.size());
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(File file, File::Open(PathOf(name)));
    files_.push_back({std::move(file), name, ""});
    ASSIGN_OR_RETURN(std::deque<StoredTensor> tensors, ReadHeader(files_.back().file, &files_.back().header_hash));
    tensors_.reserve(tensors_.size() + tensors.size());
    for (StoredTensor& tensor : tensors) {
      tensor.file = files_.back().file.path().c_str();
      tensor.file_index = static_cast<uint16_t>(files_.size() - 1);
      tensors_.push_back(std::move(tensor));
    }
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  for (size_t i = 1; i < tensors_.size(); ++i) {
    if (tensors_[i].name != tensors_[i - 1].name) continue;
    return absl::InvalidArgumentError(absl::StrCat(tensors_[i].file, ": tensor '", PrintableName(tensors_[i].name),
                                                   "': expected once, found also in ", tensors_[i - 1].file));
  }
  return absl::OkStatus();
}

const StoredTensor* DirectoryCheckpoint::Find(const std::string& name) const {
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                      [](const StoredTensor& a, const std::string& b) { return a.name < b; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::Status DirectoryCheckpoint::Read(const StoredTensor& tensor, uint64_t offset, size_t bytes, void* out) const {
  CHECK(offset <= tensor.bytes && bytes <= tensor.bytes - offset);
  return files_[tensor.file_index].file.ReadAt(tensor.offset + offset, bytes, out);
}

absl::StatusOr<std::string> DirectoryCheckpoint::Digest(bool whole) const {
  Sha256 sha;
  for (const char* name : {kConfigFile, "generation_config.json", "tokenizer.json"}) {
    absl::StatusOr<std::string> text = ReadSmallFile(PathOf(name), kSideFileBytesMax);
    if (absl::IsNotFound(text.status())) continue;
    if (!text.ok()) return text.status();
    sha.AddPart(name, text->size());
    sha.Add(text->data(), text->size());
  }
  std::vector<char> buffer(whole ? kReadBytes : 0);
  for (const WeightFile& weights : files_) {
    sha.AddPart(weights.name, weights.file.size());
    sha.Add(weights.header_hash.data(), weights.header_hash.size());
    for (uint64_t done = 0; whole && done < weights.file.size();) {
      const size_t bytes = std::min<uint64_t>(buffer.size(), weights.file.size() - done);
      RETURN_IF_ERROR(weights.file.ReadAt(done, bytes, buffer.data()));
      sha.Add(buffer.data(), bytes);
      done += bytes;
    }
  }
  return absl::BytesToHexString(sha.Finish());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  auto checkpoint = std::make_unique<DirectoryCheckpoint>(directory);
  RETURN_IF_ERROR(checkpoint->Load());
  return checkpoint;
}

}  // namespace quicksilver
