#include "coordinator/core/fair_queue.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {
namespace {

// Among tenants that have about as much waiting nobody is to make room: all would wait in vain.
constexpr double kOverdrawnFactor = 2.0;

}  // namespace

void FairQueue::Push(const QueuedRequest& request) {
  CHECK(request.cost > 0 && request.weight > 0);
  const uint64_t order = ++last_order_;
  CHECK(requests_.emplace(request.id, Entry{request, order}).second);
  Class& queue = classes_[static_cast<size_t>(request.priority)];
  queue.by_order.emplace(order, request.id);
  Backlog& backlog = queue.tenants[request.tenant];
  if (backlog.requests.empty()) {
    queue.finishes.erase({backlog.finish, request.tenant});
    backlog.start = std::max(queue.virtual_time, backlog.finish);
    queue.starts.emplace(backlog.start, request.tenant);
  }
  backlog.weight = request.weight;
  backlog.requests.emplace(request.deadline, order);
  Resize(queue, request.tenant, backlog, request.sequences);
}

void FairQueue::Resize(Class& queue, TenantId tenant, Backlog& backlog, int64_t sequences) {
  if (backlog.sequences > 0) {
    queue.by_backlog.erase({Share(backlog), tenant});
    queue.weights -= backlog.weight;
  }
  backlog.sequences += static_cast<uint64_t>(sequences);
  queue.sequences += static_cast<uint64_t>(sequences);
  if (backlog.sequences == 0) return;
  queue.by_backlog.emplace(Share(backlog), tenant);
  queue.weights += backlog.weight;
}

void FairQueue::Take(RequestId id, bool served) {
  const auto it = requests_.find(id);
  CHECK(it != requests_.end());
  const QueuedRequest request = it->second.request;
  const uint64_t order = it->second.order;
  requests_.erase(it);
  Class& queue = classes_[static_cast<size_t>(request.priority)];
  queue.by_order.erase(order);
  if (queue.by_order.empty()) {  // Nobody waits: nobody owes anybody anything.
    queue = Class{};
    return;
  }
  Backlog& backlog = queue.tenants.at(request.tenant);
  backlog.requests.erase({request.deadline, order});
  Resize(queue, request.tenant, backlog, -int64_t{request.sequences});
  queue.starts.erase({backlog.start, request.tenant});
  if (served) {
    queue.virtual_time = std::max(queue.virtual_time, backlog.start);
    backlog.finish = backlog.start + request.cost / request.weight;
    backlog.start = backlog.finish;
  }
  if (!backlog.requests.empty()) {
    queue.starts.emplace(backlog.start, request.tenant);
  } else {
    queue.finishes.emplace(backlog.finish, request.tenant);
  }
  ForgetSettled(queue);
}

// A tenant whose time has passed would begin as a new one does.
void FairQueue::ForgetSettled(Class& queue) {
  while (!queue.finishes.empty() && queue.finishes.begin()->first <= queue.virtual_time) {
    queue.tenants.erase(queue.finishes.begin()->second);
    queue.finishes.erase(queue.finishes.begin());
  }
}

size_t FairQueue::tenants() const {
  size_t tenants = 0;
  for (const Class& queue : classes_) tenants += queue.tenants.size();
  return tenants;
}

double FairQueue::Ahead(const QueuedRequest& request) const {
  double higher = 0;
  const auto priority = static_cast<size_t>(request.priority);
  for (size_t c = 0; c < priority; ++c) higher += static_cast<double>(classes_[c].sequences);
  const Class& queue = classes_[priority];
  const auto it = queue.tenants.find(request.tenant);
  const uint64_t own = it == queue.tenants.end() ? 0 : it->second.sequences;
  const double weights = queue.weights + (own == 0 ? request.weight : 0);
  return higher + std::min(static_cast<double>(queue.sequences + request.sequences),
                           static_cast<double>(own + request.sequences) * weights / request.weight);
}

std::optional<RequestId> FairQueue::Overdrawn(const QueuedRequest& request) const {
  const Class& queue = classes_[static_cast<size_t>(request.priority)];
  if (queue.by_backlog.empty()) return std::nullopt;
  const auto& [share, tenant] = *queue.by_backlog.rbegin();
  const auto it = queue.tenants.find(request.tenant);
  const uint64_t own = it == queue.tenants.end() ? 0 : it->second.sequences;
  const double mine = static_cast<double>(own + request.sequences) / request.weight;
  if (tenant == request.tenant || share <= kOverdrawnFactor * mine) {
    return std::nullopt;
  }
  return queue.by_order.at(queue.tenants.at(tenant).requests.rbegin()->second);
}

void FairQueue::Remove(RequestId id) { Take(id, /*served=*/false); }

void FairQueue::Pop(RequestId id) { Take(id, /*served=*/true); }

absl::Duration FairQueue::Age(size_t priority) const {
  const RequestId oldest = classes_[priority].by_order.begin()->second;
  return requests_.at(oldest).request.since + ageing_ * static_cast<int64_t>(priority);
}

RequestId FairQueue::Next() const {
  CHECK(!requests_.empty());
  size_t highest = 0;
  while (classes_[highest].by_order.empty()) ++highest;
  size_t chosen = highest;
  for (size_t priority = highest + 1; priority < kPriorities; ++priority) {
    if (!classes_[priority].by_order.empty() && Age(priority) < Age(chosen)) chosen = priority;
  }
  const Class& queue = classes_[chosen];
  if (chosen != highest) return queue.by_order.begin()->second;
  const Backlog& backlog = queue.tenants.at(queue.starts.begin()->second);
  return queue.by_order.at(backlog.requests.begin()->second);
}

std::vector<RequestId> FairQueue::Requests() const {
  std::vector<RequestId> ids;
  for (const Class& queue : classes_) {
    for (const auto& [order, id] : queue.by_order) ids.push_back(id);
  }
  return ids;
}

}  // namespace quicksilver
