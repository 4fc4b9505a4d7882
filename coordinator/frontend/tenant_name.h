#pragma once

#include <string>
#include <variant>
#include <vector>

#include "coordinator/core/api_error.h"

namespace quicksilver {

/// Who asks, by the values of `header`, which a proxy in front of us sets. None: "default". An error when it is given
/// twice, since a client could have added its own, or is no name: at most kTenantBytesMax visible ASCII characters.
std::variant<std::string, ApiError> TenantName(const std::string& header, const std::vector<std::string>& values);

}  // namespace quicksilver
