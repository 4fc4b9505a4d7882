#include "common/host_port.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace quicksilver {

absl::StatusOr<HostPort> ParseHostPort(const std::string& flag, const std::string& value) {
  const auto wrong = [&](const char* why) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": '", value, "' ", why, ", e.g. 127.0.0.1:8080"));
  };
  const size_t colon = value.rfind(':');
  if (colon == std::string::npos) return wrong("is not HOST:PORT");
  std::string host = value.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return wrong("needs brackets around the IPv6 address");
  }
  if (host.empty()) return wrong("names no host");
  uint32_t port = 0;
  const std::string digits = value.substr(colon + 1);
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(digits, &port) || port > 65535) {
    return wrong("has no port in 0..65535");
  }
  return HostPort{std::move(host), static_cast<uint16_t>(port)};
}

bool IsLoopback(const std::string& host) { return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0; }

}  // namespace quicksilver
