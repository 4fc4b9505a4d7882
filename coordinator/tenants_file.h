#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core/tenants.h"

namespace quicksilver {

/// Reads the limits of tenants from a YAML file: `tenants` maps names to limits, `unknown` holds the limits of each
/// tenant that is not named there. Limits are spelled as the fields of TenantLimits; a tenant whose `priority_max` is
/// not given may use `default` at most. InvalidArgument, naming file, line, field and value.
absl::StatusOr<TenantsOptions> ReadTenantsFile(const std::string& path);

}  // namespace quicksilver
