#pragma once

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

/// The pretended devices.
struct DeviceSettings {
  int count = 1;
  int major = 9;
  int minor = 0;
  int driver = CUDART_VERSION;  ///< 0: none.
  bool peer_access = true;
};
void SetDeviceSettings(const DeviceSettings& settings);
DeviceSettings GetDeviceSettings();

inline constexpr int kProcessors = 132;
inline constexpr int kThreadsMax = 1024;  ///< A block.
inline constexpr int kThreadsPerProcessor = 2048;
inline constexpr int kSharedDefaultMax = 48 * 1024;  ///< A block, unless its kernel has been granted more.
inline constexpr int kSharedMax = 227 * 1024;        ///< A block.
inline constexpr int kSharedPerProcessor = 228 * 1024;
inline constexpr int kSharedReserved = 1024;  ///< A block, by the system.
inline constexpr int kL2Bytes = 1 << 20;      ///< Small, so that who flushes it before a measurement loses no time.
inline constexpr int kBlocksPerProcessor = 32;

}  // namespace quicksilver::cuda_twin
