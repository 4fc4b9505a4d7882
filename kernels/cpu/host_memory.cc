#include "kernels/cpu/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t MachineMemory() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
}

}  // namespace

HostMemory::HostMemory(size_t bytes_max) : bytes_max_(bytes_max > 0 ? bytes_max : MachineMemory()) {}

absl::StatusOr<void*> HostMemory::Allocate(size_t bytes) {
  if (bytes > bytes_max_ - bytes_held_) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes of host memory: ", bytes_held_,
                                                     " of ", bytes_max_, " are held"));
  }
  const size_t alignment = bytes >= kHugePage ? kHugePage : size_t{64};
  const size_t rounded = RoundUp(std::max<size_t>(bytes, 1), alignment);
  void* data = std::aligned_alloc(alignment, rounded);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes of host memory: the system has",
                                                     " no more; ", bytes_held_, " are held"));
  }
  // Weights and keys are read from end to end at every step: fewer page walks. Only advice, so a refusal is fine.
  if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
  std::memset(data, 0, rounded);
  bytes_held_ += bytes;
  return data;
}

void HostMemory::Free(void* data, size_t bytes) {
  std::free(data);
  bytes_held_ -= bytes;
}

}  // namespace quicksilver
