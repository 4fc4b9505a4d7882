#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace quicksilver {

struct CudaDevice {
  int32_t ordinal = 0;
  std::string name;  ///< E.g. "NVIDIA H100 80GB HBM3".
  int32_t multiprocessors = 0;
  int64_t memory_bytes = 0;  ///< All of it, also what others use.
};

/// Looks at device `ordinal` without opening it, which would take memory there. FailedPrecondition, saying what was
/// found and what is needed: no driver or too old a one, no such device, or one that the kernels are not built for.
absl::StatusOr<CudaDevice> DescribeCudaDevice(int32_t ordinal);

/// The same, and makes it the calling thread's current one.
absl::StatusOr<CudaDevice> OpenCudaDevice(int32_t ordinal);

struct CudaStreamDestroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using CudaStream = std::unique_ptr<CUstream_st, CudaStreamDestroy>;

/// A stream of the current device that does not wait for the default one.
absl::StatusOr<CudaStream> MakeCudaStream();

}  // namespace quicksilver
