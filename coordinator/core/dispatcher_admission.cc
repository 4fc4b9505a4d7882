#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "coordinator/core/dispatcher.h"
#include "coordinator/core/refusals.h"

namespace quicksilver {
namespace {

uint64_t TokensOf(const Admission& admission) { return admission.positions() * admission.choices; }

TokenCounts ReservedBy(const Admission& admission) {
  return {.input = admission.prompt_tokens, .output = uint64_t{admission.max_tokens} * admission.choices};
}

}  // namespace

// From acceptance to the moment at which the request fails.
absl::Duration Dispatcher::TimeMax(const Admission& admission) const {
  return std::min({admission.time_max, options_.request_time_max, admission.latency_target + options_.target_grace});
}

std::optional<FailRequest> Dispatcher::Refusal(const Admission& admission, TenantId tenant, absl::Duration now) {
  const RequestId id = admission.id;
  if (stopped_) return FailRequest{id, ShuttingDown(), Rejection::kDraining};
  if (admission.accepted + TimeMax(admission) <= now) return FailRequest{id, DeadlineExceeded(), Rejection::kDeadline};
  if (std::optional<ApiError> error = tenants_.Refusal(tenant, ReservedBy(admission), now)) {
    return FailRequest{id, std::move(*error), Rejection::kTenantLimit};
  }
  if (!HasReadyGroup(admission.model)) {
    return FailRequest{id, NoReadyWorkerFor(id, admission.model), Rejection::kNoWorker};
  }
  if (TooLate(admission, now)) return FailRequest{id, DeadlineExceeded(), Rejection::kDeadline};
  if (FitsNow(admission)) return std::nullopt;
  return QueueRefusal(admission, tenant, now);
}

std::optional<FailRequest> Dispatcher::QueueRefusal(const Admission& admission, TenantId tenant,
                                                    absl::Duration now) const {
  const RequestId id = admission.id;
  const absl::Duration wait = EstimatedWait(admission, tenant);
  const ModelQueue& queue = QueueOf(*placement_.FindModel(admission.model));
  Queued lower;
  for (size_t c = static_cast<size_t>(admission.priority) + 1; c < kPriorities; ++c) {
    lower.requests += queue.by_class[c].requests;
    lower.tokens += queue.by_class[c].tokens;
  }
  if (!FitsIntoQueue(queue, lower, admission)) {
    if (const auto overdrawn = queue.fresh.Overdrawn(QueuedOf(admission, tenant, now))) {
      ++lower.requests;
      lower.tokens += TokensOf(requests_.at(*overdrawn).admission);
    }
  }
  if (!FitsIntoQueue(queue, lower, admission)) {
    return FailRequest{id,
                       OverloadedFor(id, wait,
                                     absl::StrCat("The queue is full: ", queue.queued.requests, " requests of at most ",
                                                  options_.queue_requests_max, " wait, with ", queue.queued.tokens,
                                                  " tokens of at most ", options_.queue_tokens_max, ".")),
                       Rejection::kQueueFull};
  }
  const absl::Duration wait_max = std::min(admission.accepted + TimeMax(admission) - now, options_.queue_time_max);
  if (wait <= wait_max) return std::nullopt;
  return FailRequest{id,
                     OverloadedFor(id, wait,
                                   absl::StrCat("The wait would be about ", absl::FormatDuration(wait), ", more than ",
                                                absl::FormatDuration(wait_max), ".")),
                     Rejection::kDeadline};
}

// True when the request finds room in the queue once those in `without` have left it.
bool Dispatcher::FitsIntoQueue(const ModelQueue& queue, Queued without, const Admission& admission) const {
  return queue.queued.requests - without.requests < options_.queue_requests_max &&
         queue.queued.tokens - without.tokens + TokensOf(admission) <= options_.queue_tokens_max;
}

void Dispatcher::MakeRoom(const Admission& admission, TenantId tenant, absl::Duration now, Actions& actions) {
  const auto shed = [&](RequestId id, std::string message) {
    const Request& request = requests_.at(id);
    const absl::Duration wait = EstimatedWait(request.admission, request.tenant);
    FailNow(id, OverloadedFor(id, wait, std::move(message)), Rejection::kShed, now, actions);
  };
  ModelQueue& queue = QueueOf(*placement_.FindModel(admission.model));
  for (size_t c = kPriorities - 1; c > static_cast<size_t>(admission.priority); --c) {
    while (!queue.by_age[c].empty() && !FitsIntoQueue(queue, {}, admission)) {
      shed(queue.by_age[c].rbegin()->second, "The queue is full of requests of higher priority.");
    }
  }
  if (FitsIntoQueue(queue, {}, admission)) return;
  const auto overdrawn = queue.fresh.Overdrawn(QueuedOf(admission, tenant, now));
  if (overdrawn) shed(*overdrawn, "The queue is full, and this tenant has most in it for its weight.");
}

// Behind what has lost its group and what the fair queue would serve before it.
absl::Duration Dispatcher::EstimatedWait(const Admission& admission, TenantId tenant) const {
  const GroupModel* model = placement_.FindModel(admission.model);
  if (model == nullptr || model->number >= queues_.size()) return absl::ZeroDuration();
  const ModelQueue& queue = QueueOf(*model);
  size_t waiting = model->all.waiting.size() + model->all.suspects.size();
  for (const auto& [fingerprint, pool] : model->pools) waiting += pool->waiting.size() + pool->suspects.size();
  const double ahead =
      static_cast<double>(waiting) + queue.fresh.Ahead(QueuedOf(admission, tenant, absl::ZeroDuration()));
  return absl::Seconds(queue.times.mean_seconds() * ahead /
                       static_cast<double>(std::max<uint64_t>(model->all.slots, 1)));
}

QueuedRequest Dispatcher::QueuedOf(const Admission& admission, TenantId tenant, absl::Duration now) const {
  return {.id = admission.id,
          .priority = admission.priority,
          .tenant = tenant,
          .weight = tenants_.weight(tenant),
          .cost = static_cast<double>(TokensOf(admission)),
          .sequences = admission.choices,
          .deadline =
              admission.accepted + std::min({admission.time_max, options_.request_time_max, admission.latency_target}),
          .since = now};
}

// Nothing as large was lately done in so short a time: the work would be in vain. One with a target takes what there is
// by then.
bool Dispatcher::TooLate(const Admission& admission, absl::Duration now) const {
  if (admission.latency_target != absl::InfiniteDuration()) return false;
  const GroupModel* model = placement_.FindModel(admission.model);
  if (model == nullptr || model->number >= queues_.size()) return false;
  const ServiceTimes& times = QueueOf(*model).times;
  return admission.accepted + TimeMax(admission) - now <
         times.TooShort(admission.prompt_tokens, admission.max_tokens, now);
}

bool Dispatcher::FitsNow(const Admission& admission) const {
  const GroupModel* model = placement_.FindModel(admission.model);
  if (model == nullptr || model->number >= queues_.size()) return false;
  if (!QueueOf(*model).fresh.empty() || !model->all.waiting.empty()) return false;
  // It is placed on any group of the model: what only a pool counts, whose groups are all tripped, is not for it.
  if (model->all.free < admission.choices) return false;
  return std::any_of(model->pools.begin(), model->pools.end(), [&](const auto& pool) {
    return pool.second->waiting.empty() && pool.second->free >= admission.choices;
  });
}

void Dispatcher::Enqueue(const Admission& admission, TenantId tenant, absl::Duration now) {
  GroupModel& model = *placement_.FindModel(admission.model);
  Request& request = requests_[admission.id];
  request.admission = admission;
  request.tenant = tenant;
  request.reserved = ReservedBy(admission);
  request.order = ++last_order_;
  request.model = &model;
  request.choices.resize(admission.choices);
  request.deadline = admission.accepted + TimeMax(admission);
  request.queue_deadline = std::min(request.deadline, now + options_.queue_time_max);
  tenants_.Admit(tenant, request.reserved, now);
  tenants_.EnterQueue(tenant);
  ModelQueue& queue = QueueOf(model);
  const auto c = static_cast<size_t>(admission.priority);
  const uint64_t tokens = TokensOf(admission);
  queue.fresh.Push(QueuedOf(admission, tenant, now));
  queue.by_age[c].emplace(request.order, admission.id);
  for (Queued* queued : {&queued_, &queue.queued, &queue.by_class[c]}) {
    ++queued->requests;
    queued->tokens += tokens;
  }
  SetTimer({TimerKind::kRequest, static_cast<uint64_t>(admission.id)}, request.timer, request.queue_deadline);
  MarkDirty(model);
}

void Dispatcher::LeaveQueue(Request& request, bool served) {
  const Admission& admission = request.admission;
  ModelQueue& queue = QueueOf(*request.model);
  const auto c = static_cast<size_t>(admission.priority);
  if (served) {
    queue.fresh.Pop(admission.id);
  } else {
    queue.fresh.Remove(admission.id);
  }
  CHECK(queue.by_age[c].erase({request.order, admission.id}) == 1);
  for (Queued* queued : {&queued_, &queue.queued, &queue.by_class[c]}) {
    --queued->requests;
    queued->tokens -= TokensOf(admission);
  }
  tenants_.LeaveQueue(request.tenant);
}

}  // namespace quicksilver
