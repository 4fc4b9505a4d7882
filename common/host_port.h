#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace quicksilver {

struct HostPort {
  std::string host;
  uint16_t port = 0;
};

/// "127.0.0.1:8080" or "[::1]:8080". InvalidArgument, naming `flag` and the value.
absl::StatusOr<HostPort> ParseHostPort(const std::string& flag, const std::string& value);

bool IsLoopback(const std::string& host);

}  // namespace quicksilver
