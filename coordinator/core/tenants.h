#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "coordinator/core/api_error.h"
#include "coordinator/core/generate.h"
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
  std::optional<uint64_t> tokens_per_day;          ///< Input and output.
  Priority priority_max = Priority::kInteractive;  ///< The highest class it may use; it gets that for a higher one.
};

struct TenantsOptions {
  std::map<std::string, TenantLimits> tenants;
  TenantLimits unknown;        ///< Of each tenant that is not configured.
  size_t unknown_max = 10000;  ///< Of those, followed one by one; further ones share one tenant.
  absl::Duration midnight;     ///< When some day began, on the clock of `now`: daily quotas begin anew then.

  /// The class in which such a request is served.
  Priority PriorityOf(const std::string& tenant, Priority asked) const {
    const auto it = tenants.find(tenant);
    return std::max(asked, (it == tenants.end() ? unknown : it->second).priority_max);  // Lower classes are greater.
  }
};

/// A rate of `per_minute` with a burst of one minute's worth, by the generic cell rate algorithm: all of its state is
/// the time at which nothing is used any more.
class RateLimit {
 public:
  explicit RateLimit(uint64_t per_minute) : per_minute_(per_minute) {}

  /// Until `amount` can be taken. Zero: now; infinite: never, it is more than a minute's worth.
  absl::Duration WaitFor(uint64_t amount, absl::Duration now) const;
  void Take(uint64_t amount, absl::Duration now);
  void GiveBack(uint64_t taken, uint64_t used) { unused_at_ -= Cost(taken) - Cost(used); }
  RateStatus Status(absl::Duration now) const;
  bool Unused(absl::Duration now) const { return unused_at_ <= now; }

 private:
  absl::Duration Cost(uint64_t amount) const;

  uint64_t per_minute_;
  absl::Duration unused_at_ = -absl::InfiniteDuration();
};

/// A tenant that is followed. Never given to another one.
enum class TenantId : uint64_t {};

struct TokenCounts {
  uint64_t input = 0;
  uint64_t output = 0;
};

/// What a tenant has and had. `used` counts requests that are over.
struct TenantUsage {
  uint32_t requests = 0;  ///< Admitted and not over.
  uint32_t queued = 0;
  TokenCounts reserved;
  TokenCounts used;
};

/// Limits and counters of the tenants. Admission reserves prompt and longest answer, the end gives back what was not
/// used, so that requests that come at once cannot get by a limit together.
class Tenants {
 public:
  Tenants(const TenantsOptions& options, uint32_t queue_requests_max);

  /// The tenant of that name, followed from now on. Forgets one that has nothing under way and owes nothing, if it
  /// must.
  TenantId Find(const std::string& name, absl::Duration now);
  /// Why a request that may use `tokens` must not be admitted: 429.
  std::optional<ApiError> Refusal(TenantId id, TokenCounts tokens, absl::Duration now) const;
  void Admit(TenantId id, TokenCounts tokens, absl::Duration now);
  /// `turned_away`: no work was done; the request does not count against the rate either.
  void End(TenantId id, TokenCounts reserved, TokenCounts used, bool turned_away, absl::Duration now);
  void EnterQueue(TenantId id);
  void LeaveQueue(TenantId id);

  double weight(TenantId id) const { return Get(id).limits.weight; }
  TenantRates Rates(const std::string& name, absl::Duration now) const;
  TenantUsage Usage(const std::string& name) const;
  /// Sums of all tenants: `used` only of those still followed.
  TenantUsage Total() const;
  size_t followed() const { return tenants_.size(); }

 private:
  struct Tenant {
    TenantId id{};
    std::string name;
    TenantLimits limits;
    std::optional<RateLimit> requests, input, output;
    TenantUsage usage;
    int64_t day = 0;
    uint64_t used_today = 0;
  };

  static size_t PlaceOf(TenantId id) { return static_cast<size_t>(id) % kPlaces; }
  const Tenant& Get(TenantId id) const;
  Tenant& Get(TenantId id) { return const_cast<Tenant&>(std::as_const(*this).Get(id)); }
  static Tenant Make(TenantId id, std::string name, const TenantLimits& limits);
  TenantId Append(const std::string& name, const TenantLimits& limits);
  int64_t Day(absl::Duration now) const;
  bool IsIdle(const Tenant& tenant, absl::Duration now) const;
  std::optional<size_t> Recycle(absl::Duration now);
  std::optional<ApiError> OverQuota(const Tenant& tenant, TokenCounts tokens, absl::Duration now) const;
  const Tenant* Followed(const std::string& name) const;

  // An id is a place in `tenants_`, and this much more for each tenant that was there before.
  static constexpr uint64_t kPlaces = uint64_t{1} << 32;

  const TenantsOptions options_;
  const uint32_t queue_requests_max_;
  std::vector<Tenant> tenants_;  // The configured ones, the shared one, then unknown ones.
  absl::flat_hash_map<std::string, TenantId> names_;
  TenantId shared_{};
  size_t next_recycled_ = 0;
};

}  // namespace quicksilver
