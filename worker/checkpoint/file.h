#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver {

/// A regular file, open for positional reads. Thread-safe.
class File {
 public:
  /// Follows symbolic links, but only to a regular file: a device or a pipe is InvalidArgument and is not even opened.
  /// NotFound: no such file. PermissionDenied: not readable.
  static absl::StatusOr<File> Open(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  ///< At Open.

  /// DataLoss "I/O error reading PATH" when the storage fails or the file ends before `offset` + `bytes`.
  absl::Status ReadAt(uint64_t offset, size_t bytes, void* out) const;

 private:
  File(std::string path, int fd, uint64_t size) : path_(std::move(path)), fd_(fd), size_(size) {}

  std::string path_;
  int fd_;
  uint64_t size_;
};

/// The whole of a small file. InvalidArgument when it is larger than `bytes_max`; other errors as File::Open.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, uint64_t bytes_max);

}  // namespace quicksilver
