#include "worker/checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

absl::Status OpenError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::DataLossError(absl::StrCat("I/O error opening ", message));
}

absl::Status CheckRegular(const std::string& path, const struct stat& info) {
  if (S_ISREG(info.st_mode)) return absl::OkStatus();
  const char* found = S_ISDIR(info.st_mode)                            ? "a directory"
                      : S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode) ? "a device"
                                                                       : "a pipe or socket";
  return absl::InvalidArgumentError(absl::StrCat(path, ": expected a regular file, found ", found));
}

}  // namespace

absl::StatusOr<File> File::Open(const std::string& path) {
  // Asked before opening too, since opening a device or a pipe can already do something.
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return OpenError(path, errno);
  RETURN_IF_ERROR(CheckRegular(path, info));
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return OpenError(path, errno);
  File file(path, fd, 0);
  if (fstat(fd, &info) != 0) return OpenError(path, errno);
  RETURN_IF_ERROR(CheckRegular(path, info));
  file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

absl::Status File::ReadAt(uint64_t offset, size_t bytes, void* out) const {
  char* to = static_cast<char*>(out);
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = pread(fd_, to + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::DataLossError(absl::StrCat("I/O error reading ", path_, ": ", std::strerror(errno)));
    if (n == 0) {
      return absl::DataLossError(absl::StrCat("I/O error reading ", path_, ": expected ", size_,
                                              " bytes as when it was opened, found its end at byte ", offset + done));
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, uint64_t bytes_max) {
  ASSIGN_OR_RETURN(const File file, File::Open(path));
  if (file.size() > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected at most ", bytes_max, " bytes, found ", file.size()));
  }
  std::string text(file.size(), '\0');
  RETURN_IF_ERROR(file.ReadAt(0, text.size(), text.data()));
  return text;
}

}  // namespace quicksilver
