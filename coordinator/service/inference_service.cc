#include "coordinator/service/inference_service.h"

#include <algorithm>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/service/inference_service_impl.h"

namespace quicksilver {
namespace {

// The longest that a deadline or a lease is noticed late.
constexpr absl::Duration kTickInterval = absl::Milliseconds(25);

}  // namespace

InferenceServiceImpl::InferenceServiceImpl(InferenceOptions options, std::shared_ptr<const TextModel> text,
                                           Metrics& metrics)
    : options_(std::move(options)), text_(std::move(text)), metrics_(metrics), dispatcher_(options_.dispatcher) {
  pool_.emplace(options_.tokenizer_threads, options_.tokenizer_queue_max, options_.tokenizer_queue_bytes_max);
  {
    MutexLock lock(mu_);
    cluster_ = Cluster::Start(options_.cluster, *this);
  }
  ticker_ = std::thread([this] { TickLoop(); });
}

InferenceServiceImpl::~InferenceServiceImpl() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  ticker_.join();
  pool_.reset();
  // The listener may be running: it needs the rest of this object until the cluster is gone.
  cluster_.reset();
}

void InferenceServiceImpl::Execute(const Actions& actions, absl::Duration now, Effects& effects) {
  for (const Action& action : actions) {
    if (const auto* submit = std::get_if<SubmitSequence>(&action)) {
      ExecuteSubmit(*submit, now, effects);
    } else if (const auto* cancel = std::get_if<CancelSequence>(&action)) {
      auto message = std::make_unique<v1::CoordinatorMessage>();
      message->mutable_cancel()->set_sequence_id(static_cast<uint64_t>(cancel->sequence));
      cluster_->Enqueue(cancel->to, std::move(message));
      effects.flushes.push_back(cancel->to);
    } else if (const auto* failed = std::get_if<FailRequest>(&action)) {
      CountRejection(failed->rejection);
      if (const auto it = live_.find(failed->request); it != live_.end()) {
        effects.failures.emplace_back(it->second, failed->error);
        live_.erase(it);
      }
      changed_.NotifyAll();
    } else if (const auto* complete = std::get_if<CompleteRequest>(&action)) {
      const auto it = live_.find(complete->request);
      metrics_.e2e_request_latency_seconds.Observe(absl::ToDoubleSeconds(now - it->second->accepted()));
      live_.erase(it);
      changed_.NotifyAll();
    } else {
      effects.drops.push_back(std::get<DropGroup>(action));
    }
  }
  metrics_.requests_waiting.Set(static_cast<double>(dispatcher_.waiting()));
  metrics_.requests_running.Set(static_cast<double>(dispatcher_.running()));
}

void InferenceServiceImpl::ExecuteSubmit(const SubmitSequence& submit, absl::Duration now, Effects& effects) {
  const LivePtr& live = live_.at(submit.request);
  const GroupState& group = dispatcher_.groups().at(submit.to.group);
  // The order of messages is that of decisions, since both happen under the lock.
  cluster_->Enqueue(submit.to, live->OnPlaced(submit.choice, submit.sequence, group.facts.fingerprint, now));
  effects.flushes.push_back(submit.to);
  if (submit.choice != 0) return;
  effects.deliveries.push_back(live);
  metrics_.request_queue_time_seconds.Observe(absl::ToDoubleSeconds(now - live->accepted()));
  metrics_.request_prompt_tokens.Observe(live->prompt_tokens());
  metrics_.prompt_tokens.Increment(live->prompt_tokens());
  metrics_.request_params_n.Observe(live->request().choices);
  metrics_.request_params_max_tokens.Observe(live->max_tokens());
}

void InferenceServiceImpl::CountRejection(Rejection rejection) {
  switch (rejection) {
    case Rejection::kNone:
      return;
    case Rejection::kQueueFull:
      return metrics_.rejections.queue_full->Increment();
    case Rejection::kTenantLimit:
    case Rejection::kShed:
      return metrics_.rejections.queue_full->Increment();
    case Rejection::kDeadline:
      return metrics_.rejections.deadline->Increment();
    case Rejection::kDraining:
      return metrics_.rejections.draining->Increment();
    case Rejection::kNoWorker:
      return metrics_.rejections.no_worker->Increment();
  }
}

void InferenceServiceImpl::RunEffects(Effects& effects) {
  for (const Connection& connection : effects.flushes) cluster_->Flush(connection);
  for (const DropGroup& drop : effects.drops) {
    LogWarning("group lost", {{"address", options_.cluster.workers[static_cast<uint32_t>(drop.group.group)]},
                              {"reason", drop.reason}});
    cluster_->Drop(drop.group);
    metrics_.groups[static_cast<uint32_t>(drop.group.group)].up->Set(0);
    metrics_.groups[static_cast<uint32_t>(drop.group.group)].size->Set(0);
  }
  for (auto& [live, error] : effects.failures) {
    live->Fail(std::move(error));
    live->Deliver();
  }
  for (const LivePtr& live : effects.deliveries) live->Deliver();
}

std::vector<ModelInfo> InferenceServiceImpl::Models() const {
  MutexLock lock(mu_);
  std::vector<ModelInfo> models;
  for (const auto& [name, facts] : models_) {
    models.push_back({name, facts.created, facts.max_model_len, dispatcher_.HasReadyGroup(name)});
  }
  if (models.empty()) return models;
  for (const std::string& alias : options_.model_aliases) {
    ModelInfo info = models.front();
    info.id = alias;
    models.push_back(std::move(info));
  }
  return models;
}

std::optional<ApiError> InferenceServiceImpl::NotReady() const {
  MutexLock lock(mu_);
  if (lame_duck_ || draining_) return ShuttingDown();
  for (const auto& [id, group] : dispatcher_.groups()) {
    if (group.ready) return std::nullopt;
  }
  return NoReadyWorker("No worker group is ready.");
}

void InferenceServiceImpl::BeginLameDuck() {
  MutexLock lock(mu_);
  lame_duck_ = true;
}

void InferenceServiceImpl::BeginDrain() {
  MutexLock lock(mu_);
  draining_ = true;
  dispatcher_.StopAdmission();
}

bool InferenceServiceImpl::WaitIdle(absl::Duration timeout) {
  const absl::Duration end = MonotonicNow() + timeout;
  MutexLock lock(mu_);
  while (preparing_ > 0 || dispatcher_.requests() > 0) {
    const absl::Duration left = end - MonotonicNow();
    if (left <= absl::ZeroDuration()) return false;
    changed_.WaitFor(mu_, std::min(left, absl::Seconds(1)));
  }
  return true;
}

void InferenceServiceImpl::TickLoop() {
  for (;;) {
    Effects effects;
    {
      MutexLock lock(mu_);
      const absl::Duration now = MonotonicNow();
      if (dispatcher_.NextTick() > now && !stopping_) {
        changed_.WaitFor(mu_, std::min(dispatcher_.NextTick() - now, kTickInterval));
      }
      if (stopping_) return;
      const absl::Duration later = MonotonicNow();
      if (dispatcher_.NextTick() > later) continue;
      Execute(dispatcher_.Tick(later), later, effects);
    }
    RunEffects(effects);
  }
}

std::unique_ptr<InferenceService> InferenceService::Create(InferenceOptions options,
                                                           std::shared_ptr<const TextModel> text, Metrics& metrics) {
  return std::make_unique<InferenceServiceImpl>(std::move(options), std::move(text), metrics);
}

}  // namespace quicksilver
