#include "coordinator/service/inference_service.h"

#include <algorithm>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/service/inference_service_impl.h"

namespace quicksilver {
namespace {

// The longest that a deadline or a lease is noticed late.
constexpr absl::Duration kTickInterval = absl::Milliseconds(25);

// So late the loop wakes when all of the process was stopped (a paused machine, SIGSTOP) or starved of processors.
constexpr absl::Duration kStopped = absl::Seconds(1);

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
  // Sinks may be running on the threads of both, and use both. Those of the cluster give work to the pool.
  cluster_->Stop();
  pool_->Stop();
}

void InferenceServiceImpl::Execute(const Actions& actions, absl::Duration now, Effects& effects) {
  std::vector<SubmitSequence> unsent;  // Told of behind the rest: what follows from it comes behind these actions.
  for (const Action& action : actions) {
    if (const auto* submit = std::get_if<SubmitSequence>(&action)) {
      if (!ExecuteSubmit(*submit, now, effects)) unsent.push_back(*submit);
    } else if (const auto* cancel = std::get_if<CancelSequence>(&action)) {
      auto message = std::make_unique<v1::CoordinatorMessage>();
      message->mutable_cancel()->set_sequence_id(static_cast<uint64_t>(cancel->sequence));
      cluster_->Enqueue(cancel->to, std::move(message));
      effects.flushes.push_back(cancel->to);
    } else if (const auto* failed = std::get_if<FailRequest>(&action)) {
      ExecuteFail(*failed, now, effects);
    } else if (const auto* complete = std::get_if<CompleteRequest>(&action)) {
      const auto it = live_.find(complete->request);
      metrics_.e2e_request_latency_seconds.Observe(absl::ToDoubleSeconds(now - it->second->accepted()));
      live_.erase(it);
      changed_.NotifyAll();
    } else {
      ExecuteDrop(std::get<DropGroup>(action), now, effects);
    }
  }
  for (const SubmitSequence& submit : unsent) {
    const auto it = live_.find(submit.request);
    if (it == live_.end()) continue;
    const LiveRequest& live = *it->second;
    Execute(live.HasEnded(submit.choice)
                ? dispatcher_.OnSequenceEnded(submit.sequence, live.completion_tokens(submit.choice), now)
                : dispatcher_.Fail(submit.request, WorkerLost(), now),
            now, effects);
  }
  metrics_.requests_waiting.Set(static_cast<double>(dispatcher_.waiting()));
  metrics_.requests_running.Set(static_cast<double>(dispatcher_.running()));
}

bool InferenceServiceImpl::ExecuteSubmit(const SubmitSequence& submit, absl::Duration now, Effects& effects) {
  const LivePtr live = live_.at(submit.request);
  const GroupPtr place = FindGroup(submit.to.group);
  const LiveRequest::Placement placement{.choice = submit.choice,
                                         .sequence = submit.sequence,
                                         .fingerprint = place == nullptr ? "" : place->fingerprint,
                                         .group = submit.to.group,
                                         .cause = submit.cause,
                                         .left_at = LeftAt(*live, submit, now)};
  std::unique_ptr<v1::CoordinatorMessage> message = live->OnPlaced(placement, now);
  if (message == nullptr) return false;
  // The order of messages is that of decisions, since both happen under the lock.
  cluster_->Enqueue(submit.to, std::move(message));
  effects.flushes.push_back(submit.to);
  if (submit.cause == SubmitCause::kLost) metrics_.requests_resumed.lost->Increment();
  if (submit.cause == SubmitCause::kMoved) metrics_.requests_resumed.moved->Increment();
  if (submit.choice != 0 || submit.cause != SubmitCause::kNew) return true;
  throughput_.AddPrompt(live->prompt_tokens());
  metrics_.tenant(live->request().tenant).prompt_tokens->Increment(live->prompt_tokens());
  metrics_.request_queue_time_seconds.Observe(absl::ToDoubleSeconds(now - live->accepted()));
  metrics_.request_prompt_tokens.Observe(live->prompt_tokens());
  metrics_.request_params_n.Observe(live->request().choices);
  metrics_.request_params_max_tokens.Observe(live->max_tokens());
  return true;
}

absl::Duration InferenceServiceImpl::LeftAt(const LiveRequest& live, const SubmitSequence& submit,
                                            absl::Duration now) const {
  if (submit.cause != SubmitCause::kLost) return now;
  const LiveRequest::LastPlace last = live.last_place(submit.choice);
  const GroupPtr place = FindGroup(last.group);
  return place != nullptr && place->lost >= last.since ? place->lost : now;
}

void InferenceServiceImpl::ExecuteFail(const FailRequest& failed, absl::Duration now, Effects& effects) {
  CountRejection(failed);
  changed_.NotifyAll();
  const auto it = live_.find(failed.request);
  if (it == live_.end()) return;
  ApiError error = failed.error;
  if (failed.rejection == Rejection::kTenantLimit) {
    error.rates = dispatcher_.Rates(it->second->request().tenant, now);
  }
  effects.failures.emplace_back(it->second, std::move(error));
  live_.erase(it);
}

void InferenceServiceImpl::ExecuteDrop(const DropGroup& drop, absl::Duration now, Effects& effects) {
  const GroupPtr place = FindGroup(drop.group.group);
  if (place == nullptr) return;
  place->GiveUp(now);
  effects.drops.emplace_back(drop, place);
}

void InferenceServiceImpl::CountRejection(const FailRequest& failed) {
  Metrics::Rejections& count = metrics_.rejections;
  switch (failed.rejection) {
    case Rejection::kNone:
      return;
    case Rejection::kQueueFull:
    case Rejection::kShed:
      return count.queue_full->Increment();
    case Rejection::kDeadline:
      return count.deadline->Increment();
    case Rejection::kDraining:
      return count.draining->Increment();
    case Rejection::kNoWorker:
      return count.no_worker->Increment();
    case Rejection::kTenantLimit:
      return (failed.error.code == "insufficient_quota" ? count.quota : count.rate_limit)->Increment();
  }
}

void InferenceServiceImpl::RunEffects(Effects& effects) {
  for (const Connection& connection : effects.flushes) cluster_->Flush(connection);
  for (const auto& [drop, place] : effects.drops) {
    LogWarning("group lost", {{"address", place->address}, {"reason", drop.reason}});
    cluster_->Drop(drop.group);
  }
  for (auto& [live, error] : effects.failures) {
    live->Fail(std::move(error));
    live->Deliver();
  }
}

std::vector<ModelInfo> InferenceServiceImpl::Models() const {
  MutexLock lock(mu_);
  std::vector<ModelInfo> models;
  for (const auto& [name, facts] : models_) {
    models.push_back({name, facts.created, facts.max_model_len, dispatcher_.HasReadyGroup(name), facts.family,
                      facts.policies, facts.infill});
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
      const absl::Duration wake = std::min(dispatcher_.NextTick(), now + kTickInterval);
      if (wake > now && !stopping_) changed_.WaitFor(mu_, wake - now);
      if (stopping_) return;
      const absl::Duration later = MonotonicNow();
      // What groups said meanwhile is still to be read.
      if (later - wake > kStopped) dispatcher_.ForgiveSilence(later);
      LogThroughput(later);
      if (dispatcher_.NextTick() > later) continue;
      Execute(dispatcher_.Tick(later), later, effects);
    }
    RunEffects(effects);
  }
}

void InferenceServiceImpl::LogThroughput(absl::Duration now) {
  const std::optional<ThroughputLog::Rates> rates = throughput_.Next(now);
  if (!rates) return;
  double kv_usage = 0;
  for (const auto& [id, place] : groups_) kv_usage = std::max(kv_usage, place->kv_usage);
  LogInfo("throughput", {{"prompt_tokens_per_second", rates->prompt_tokens_per_second},
                         {"generation_tokens_per_second", rates->output_tokens_per_second},
                         {"tokens_per_forward", rates->tokens_per_forward},
                         {"prefix_hit_ratio", rates->prefix_hit_ratio},
                         {"kv_cache_usage_ratio_max", kv_usage},
                         {"running", dispatcher_.running()},
                         {"waiting", dispatcher_.waiting()}});
}

std::unique_ptr<InferenceService> InferenceService::Create(InferenceOptions options,
                                                           std::shared_ptr<const TextModel> text, Metrics& metrics) {
  return std::make_unique<InferenceServiceImpl>(std::move(options), std::move(text), metrics);
}

}  // namespace quicksilver
