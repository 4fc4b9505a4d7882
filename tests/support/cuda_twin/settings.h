#pragma once

#include <atomic>
#include <cstdint>

namespace quicksilver::cuda_twin {

/// What the environment sets for programs that do not know of TwinDevice(): QUICKSILVER_CUDA_TWIN_SEED,
/// QUICKSILVER_CUDA_TWIN_DEFERRED=1 and QUICKSILVER_CUDA_TWIN_SHARED=1.
struct EnvironmentSettings {
  uint64_t thread_order_seed = 0;
  bool deferred = false;
  bool shared = false;
};
const EnvironmentSettings& Environment();

/// What TwinDevice() sets and the execution reads.
struct ExecutionSettings {
  std::atomic<uint64_t> thread_order_seed{Environment().thread_order_seed};
  std::atomic<int> spin_seconds_max{60};
  std::atomic<bool> race_check{true};
};

ExecutionSettings& Execution();

}  // namespace quicksilver::cuda_twin
