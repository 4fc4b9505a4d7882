#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "tools/gpu/step_cost.h"

namespace quicksilver {

struct CeilingSizes {
  size_t copy_bytes = size_t{2} << 30;  ///< Many times the second-level cache.
  int64_t product = 8192;               ///< M = N = K.
  int rounds = 20;
};

/// What the current device does at best, right now: a copy within its memory, and one large product of random numbers
/// in bf16 and in e4m3 (without scales) by the fastest of the algorithms that cuBLASLt advises. Medians of device
/// events. A peak is 0 where the library knows no such product.
absl::StatusOr<Ceilings> MeasureCeilings(const CeilingSizes& sizes);

}  // namespace quicksilver
