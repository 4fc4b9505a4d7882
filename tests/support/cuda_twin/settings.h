#pragma once

#include <atomic>
#include <cstdint>

namespace quicksilver::cuda_twin {

/// What TwinDevice() sets and the execution reads.
struct ExecutionSettings {
  std::atomic<uint64_t> thread_order_seed{0};
  std::atomic<int> spin_seconds_max{60};
  std::atomic<bool> race_check{true};
};

inline ExecutionSettings execution_settings;

}  // namespace quicksilver::cuda_twin
