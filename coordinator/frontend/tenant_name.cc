#include "coordinator/frontend/tenant_name.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/core/generate.h"

namespace quicksilver {

std::variant<std::string, ApiError> TenantName(const std::string& header, const std::vector<std::string>& values) {
  if (values.empty()) return GenerateRequest().tenant;
  if (values.size() > 1) {
    return InvalidRequest("invalid_value", header,
                          absl::StrCat("The header ", header, " is given ", values.size(), " times, once is allowed."));
  }
  const std::string& name = values[0];
  if (name.empty() || name.size() > kTenantBytesMax) {
    return InvalidRequest(
        "invalid_value", header,
        absl::StrCat("The header ", header, " has ", name.size(), " bytes, not 1 to ", kTenantBytesMax, "."));
  }
  if (!std::all_of(name.begin(), name.end(), [](char c) { return c > 0x20 && c < 0x7F; })) {
    return InvalidRequest("invalid_value", header,
                          absl::StrCat("The header ", header, " holds characters other than visible ASCII."));
  }
  return name;
}

}  // namespace quicksilver
