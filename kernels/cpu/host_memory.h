#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quicksilver {

/// Hands out zeroed, 64-byte aligned host memory up to a bound. Not thread-safe.
class HostMemory {
 public:
  /// bytes_max = 0: as much as the machine has.
  explicit HostMemory(size_t bytes_max);

  /// ResourceExhausted, naming what is asked, held and allowed. Zero bytes give a pointer that Free accepts.
  absl::StatusOr<void*> Allocate(size_t bytes);
  void Free(void* data, size_t bytes);

 private:
  size_t bytes_max_;
  size_t bytes_held_ = 0;
};

}  // namespace quicksilver
