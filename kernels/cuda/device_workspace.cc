#include "kernels/cuda/device_workspace.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace quicksilver {

absl::StatusOr<CudaMemory> AllocateDeviceMemory(size_t bytes, const std::string& purpose) {
  // A recording forbids calls that might wait for other streams; this one's memory is no part of it.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  RETURN_IF_ERROR(CudaStatus(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode"));
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  size_t free_bytes = 0, total_bytes = 0;
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total_bytes);
  }
  RETURN_IF_ERROR(CudaStatus(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode"));
  if (error == cudaErrorMemoryAllocation) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes of device memory for ", purpose,
                                                     ": ", free_bytes, " of ", total_bytes, " are free"));
  }
  RETURN_IF_ERROR(CudaStatus(error, "cudaMalloc"));
  return CudaMemory(memory);
}

absl::StatusOr<void*> DeviceWorkspace::Get(size_t bytes) {
  if (allocations_.empty() || bytes > bytes_) {
    // What is outgrown is then at most twice what is used.
    const size_t wanted = std::max(bytes, bytes_ + bytes_ / 2);
    ASSIGN_OR_RETURN(CudaMemory memory, AllocateDeviceMemory(wanted, name_));
    allocations_.push_back(std::move(memory));
    bytes_ = wanted;
  }
  return allocations_.back().get();
}

}  // namespace quicksilver
