#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_memory.h"

namespace quicksilver {

/// Scratch memory of a device that only grows, aligned to 256 bytes; growing loses the content. It may grow while a
/// step is recorded. What it has outgrown is kept: recorded programs go on using it.
class DeviceWorkspace {
 public:
  /// `name`: for messages.
  explicit DeviceWorkspace(std::string name) : name_(std::move(name)) {}

  /// At least `bytes` of the current device, not initialised. ResourceExhausted: names the workspace, `bytes` and what
  /// is free.
  absl::StatusOr<void*> Get(size_t bytes);

 private:
  const std::string name_;
  std::vector<CudaMemory> allocations_;  // The last one is the current one.
  size_t bytes_ = 0;
};

/// cudaMalloc, also while a stream of this thread is recorded. ResourceExhausted: says what `purpose` needs and what is
/// free.
absl::StatusOr<CudaMemory> AllocateDeviceMemory(size_t bytes, const std::string& purpose);

}  // namespace quicksilver
