#pragma once

#include <cuda_runtime_api.h>

#include <string>

#ifdef QUICKSILVER_CUDA_TWIN
#include "tests/support/cuda_twin/twin_device.h"
#endif

namespace quicksilver {

/// Prepares what the tests run on: the twin, whose memory processes are to share, or real devices. Why the tests have
/// to be skipped, or nothing.
inline std::string PrepareDevices(int wanted) {
#ifdef QUICKSILVER_CUDA_TWIN
  cuda_twin::TwinDevice().SetSharedMemory(true);
  cuda_twin::TwinDevice().SetDeviceCount(wanted);
#endif
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return std::string("no CUDA device: ") + cudaGetErrorString(error);
  if (devices >= wanted) return "";
  return "needs " + std::to_string(wanted) + " CUDA devices, has " + std::to_string(devices);
}

}  // namespace quicksilver
