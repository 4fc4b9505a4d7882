#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_error.h"

namespace quicksilver {

struct CudaMemoryFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct PinnedMemoryFree {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
using CudaMemory = std::unique_ptr<void, CudaMemoryFree>;      ///< Device memory, aligned to 256 bytes.
using PinnedMemory = std::unique_ptr<void, PinnedMemoryFree>;  ///< Host memory that the device copies from directly.

/// Not initialised. `what` names the memory in the message of a ResourceExhausted.
inline absl::StatusOr<PinnedMemory> AllocatePinnedMemory(size_t bytes, absl::string_view what) {
  void* memory = nullptr;
  const absl::Status status =
      CudaStatus(cudaMallocHost(&memory, bytes), absl::StrCat("cudaMallocHost of ", bytes, " bytes for ", what));
  if (!status.ok()) return status;
  return PinnedMemory(memory);
}

struct CudaEventDestroy {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, CudaEventDestroy>;

inline absl::StatusOr<CudaEvent> MakeCudaEvent(unsigned int flags) {
  cudaEvent_t event = nullptr;
  const absl::Status status = CudaStatus(cudaEventCreateWithFlags(&event, flags), "cudaEventCreateWithFlags");
  if (!status.ok()) return status;
  return CudaEvent(event);
}

}  // namespace quicksilver
