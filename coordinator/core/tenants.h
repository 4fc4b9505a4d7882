#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "coordinator/core/rates.h"

namespace quicksilver {

/// What one tenant may use. A field that is not set does not limit.
struct TenantLimits {
  double weight = 1.0;  ///< Of its share of the groups while others wait, too. > 0.
  std::optional<uint32_t> concurrent_requests_max;
  std::optional<double> queue_share_max;  ///< Of queue_requests_max, in (0, 1].
  std::optional<uint64_t> requests_per_minute;
  std::optional<uint64_t> input_tokens_per_minute;
  std::optional<uint64_t> output_tokens_per_minute;
  std::optional<uint64_t> tokens_per_day;  ///< Input and output.
};

struct TenantsOptions {
  std::map<std::string, TenantLimits> tenants;
  TenantLimits unknown;        ///< Of each tenant that is not configured.
  size_t unknown_max = 10000;  ///< Of those, followed one by one; further ones share one tenant.
  absl::Duration midnight;     ///< When some day began, on the clock of `now`: daily quotas begin anew then.
};

}  // namespace quicksilver
