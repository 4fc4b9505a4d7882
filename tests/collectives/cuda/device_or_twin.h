#pragma once

#include <gtest/gtest.h>

#ifdef QUICKSILVER_CUDA_TWIN
#include "tests/support/cuda_twin/twin_device.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace quicksilver {

/// Sets up what the tests of a program run on: the twin, or a device. Skips them where there is no device.
class DeviceOrTwin final : public ::testing::Environment {
 public:
  void SetUp() override {
#ifdef QUICKSILVER_CUDA_TWIN
    cuda_twin::TwinDevice().SetSharedMemory(true);
#else
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device";
#endif
  }
};

inline ::testing::Environment* const device_or_twin = ::testing::AddGlobalTestEnvironment(new DeviceOrTwin);

}  // namespace quicksilver
