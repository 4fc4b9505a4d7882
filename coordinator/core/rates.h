#pragma once

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace quicksilver {

/// One limit as the rate headers tell it (serving.md §1.9).
struct RateStatus {
  uint64_t limit = 0;
  uint64_t remaining = 0;
  absl::Duration reset;  ///< Until all of `limit` is there again.
};
struct TenantRates {
  std::optional<RateStatus> requests;  ///< Unset: not limited.
  std::optional<RateStatus> tokens;    ///< Of input and output the one of which the smaller part is left.
};

}  // namespace quicksilver
