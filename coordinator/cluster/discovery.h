#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/host_port.h"

namespace quicksilver {

/// Where worker groups are: one leader at an address, or all the addresses that a DNS name has.
struct WorkerSource {
  HostPort at;
  bool looked_up = false;  ///< `at.host` is a DNS name, each address of which is a leader.
};

/// "host:port", or "dns:///name:port". InvalidArgument, naming `flag` and the value.
absl::StatusOr<WorkerSource> ParseWorkerSource(const std::string& flag, const std::string& value);

/// All addresses of `name`, each as host:port. May block for many seconds, and longer than its Discovery lives.
using Resolver = std::function<absl::StatusOr<std::vector<std::string>>(const HostPort& name)>;

/// Asks the system (hosts file, DNS): every A and AAAA record. Unavailable, naming `name` and the reason; NotFound when
/// it has none.
absl::StatusOr<std::vector<std::string>> ResolveWithSystem(const HostPort& name);

struct DiscoveryOptions {
  std::vector<WorkerSource> sources;
  absl::Duration interval = absl::Seconds(5);            ///< Between look-ups of a name, with jitter.
  absl::Duration backoff_min = absl::Milliseconds(500);  ///< After a failed one; doubles, with jitter.
  absl::Duration backoff_max = absl::Seconds(30);
  Resolver resolver = ResolveWithSystem;
};

/// Looks names up again and again. A name that cannot be looked up keeps the addresses that it had.
class Discovery {
 public:
  /// `on_members` is called with all addresses of all sources whenever that set has changed, one call after the other,
  /// on a thread of its own: first with what needs no look-up.
  static std::unique_ptr<Discovery> Start(DiscoveryOptions options,
                                          std::function<void(const std::set<std::string>& addresses)> on_members);
  /// No call comes afterwards. A look-up that is under way is left to itself.
  virtual ~Discovery() = default;
};

}  // namespace quicksilver
