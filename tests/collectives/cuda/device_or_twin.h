#pragma once

#include <cuda_runtime_api.h>

#include <string>

#ifdef QUICKSILVER_CUDA_TWIN
#include "tests/support/cuda_twin/twin_device.h"
#endif

namespace quicksilver {

/// Prepares what the tests run on: the twin, whose memory processes are to share, or a device. Why they have to be
/// skipped, or nothing.
inline std::string PrepareDevice() {
#ifdef QUICKSILVER_CUDA_TWIN
  cuda_twin::TwinDevice().SetSharedMemory(true);
#endif
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return "";
  return std::string("no CUDA device: ") + cudaGetErrorString(error);
}

}  // namespace quicksilver
