#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "coordinator/core/generate.h"
#include "coordinator/core/ids.h"
#include "coordinator/core/tenants.h"

namespace quicksilver {

inline constexpr size_t kPriorities = 3;

struct QueuedRequest {
  RequestId id{};
  Priority priority = Priority::kDefault;
  TenantId tenant{};
  double weight = 1;  ///< Of the tenant.
  double cost = 1;    ///< What serving it takes, in any unit. > 0.
  uint32_t sequences = 1;
  absl::Duration deadline;  ///< Earlier ones of a tenant go first.
  absl::Duration since;     ///< When it was pushed; never before that of an earlier push.
};

/// Who is next among the requests that wait for a model.
/// Classes: the highest one goes first, but a request ages: one that has waited for `ageing` longer, for each class
/// between them, than the oldest of the higher class goes before it. So nothing waits for longer than that behind
/// higher classes. Within a class: start-time fair queueing between tenants. Within a tenant: the earliest deadline,
/// then the order of arrival.
class FairQueue {
 public:
  explicit FairQueue(absl::Duration ageing) : ageing_(ageing) {}

  void Push(const QueuedRequest& request);
  /// It leaves without being served.
  void Remove(RequestId id);
  /// Who is to be served next. Requires: not empty.
  RequestId Next() const;
  /// It is served: its tenant is charged.
  void Pop(RequestId id);

  /// About how many sequences are served until those of such a request are, these included: it waits behind higher
  /// classes and within the share of its tenant, whatever another tenant has waiting.
  double Ahead(const QueuedRequest& request) const;
  /// The request to give up for a new one of its class: the last one of the tenant that has most waiting for its
  /// weight, if that is more than twice what the new one's would have with it.
  std::optional<RequestId> Overdrawn(const QueuedRequest& request) const;

  bool empty() const { return requests_.empty(); }
  size_t size() const { return requests_.size(); }
  size_t tenants() const;  ///< That wait or were given more than their share until now, counted in each class.
  /// In order of arrival within their classes, the highest class first.
  std::vector<RequestId> Requests() const;

 private:
  struct Backlog {
    std::set<std::pair<absl::Duration, uint64_t>> requests;  // Deadline and order.
    uint64_t sequences = 0;
    double weight = 1;
    double start = 0;   // Virtual time at which its next one starts.
    double finish = 0;  // Of the last one served.
  };
  struct Class {
    double virtual_time = 0;  // The start of the last one served.
    absl::flat_hash_map<TenantId, Backlog> tenants;
    std::set<std::pair<double, TenantId>> starts;    // Of the tenants with a backlog.
    std::set<std::pair<double, TenantId>> finishes;  // Of those without one, while it matters.
    std::map<uint64_t, RequestId> by_order;
    std::set<std::pair<double, TenantId>> by_backlog;  // By sequences for each weight; those with a backlog.
    uint64_t sequences = 0;
    double weights = 0;  // Of the tenants with a backlog.
  };
  struct Entry {
    QueuedRequest request;
    uint64_t order = 0;
  };

  absl::Duration Age(size_t priority) const;  // When its oldest request would have come, were it of the highest class.
  void Take(RequestId id, bool served);
  static void ForgetSettled(Class& queue);
  static void Resize(Class& queue, TenantId tenant, Backlog& backlog, int64_t sequences);
  static double Share(const Backlog& backlog) { return static_cast<double>(backlog.sequences) / backlog.weight; }

  const absl::Duration ageing_;
  std::array<Class, kPriorities> classes_;
  absl::flat_hash_map<RequestId, Entry> requests_;
  uint64_t last_order_ = 0;
};

}  // namespace quicksilver
