#include <algorithm>
#include <ctime>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "coordinator/service/inference_service_impl.h"

namespace quicksilver {
namespace {

uint64_t RandomSeed() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return random();
}

size_t BytesOf(const GenerateRequest& request) {
  size_t bytes = sizeof(request);
  if (const auto* messages = std::get_if<std::vector<ChatMessage>>(&request.input)) {
    for (const ChatMessage& message : *messages) bytes += sizeof(message) + message.content.size();
  } else if (const auto* text = std::get_if<std::string>(&request.input)) {
    bytes += text->size();
  } else {
    bytes += std::get<std::vector<int32_t>>(request.input).size() * sizeof(int32_t);
  }
  for (const auto* side : {&request.infill.suffix, &request.infill.draft}) {
    if (const auto* text = std::get_if<std::string>(side)) bytes += text->size();
    if (const auto* ids = std::get_if<std::vector<int32_t>>(side)) bytes += ids->size() * sizeof(int32_t);
  }
  return bytes + (request.infill.fixed_ids.size() + request.forbidden_ids.size()) * sizeof(int32_t);
}

class CallHandle : public Call {
 public:
  CallHandle(InferenceServiceImpl& service, LivePtr live) : service_(service), live_(std::move(live)) {}
  ~CallHandle() override { Cancel(); }
  void Cancel() override {
    live_->Cancel();
    service_.CancelRequest(live_);
  }

 private:
  InferenceServiceImpl& service_;
  const LivePtr live_;
};

}  // namespace

std::unique_ptr<Call> InferenceServiceImpl::Start(GenerateRequest request, std::shared_ptr<ResponseSink> sink) {
  request.priority = options_.dispatcher.tenants.PriorityOf(request.tenant, request.priority);
  const size_t bytes = BytesOf(request);
  LivePtr live;
  {
    MutexLock lock(mu_);
    live = std::make_shared<LiveRequest>(RequestId{++last_request_}, std::move(request), std::move(sink),
                                         MonotonicNow(), static_cast<int64_t>(std::time(nullptr)));
    ++preparing_;
  }
  if (!pool_->Add([this, live] { PrepareAndSubmit(live); }, bytes)) {
    pool_->AddUrgent([this, live] {
      metrics_.rejections.queue_full->Increment();
      Refuse(live, Overloaded("Too many requests wait to be tokenised.", 1));
    });
  }
  return std::make_unique<CallHandle>(*this, live);
}

void InferenceServiceImpl::Refuse(const LivePtr& live, ApiError error) {
  EndPreparing();
  live->Fail(std::move(error));
  live->Deliver();
}

void InferenceServiceImpl::EndPreparing() {
  MutexLock lock(mu_);
  --preparing_;
  changed_.NotifyAll();
}

std::variant<ModelFacts, ApiError> InferenceServiceImpl::FindModel(const std::string& name) const {
  if (draining_) return ShuttingDown();
  if (models_.empty()) return NoReadyWorker("No worker group is ready.");
  if (const auto it = models_.find(name); it != models_.end()) return it->second;
  const auto& aliases = options_.model_aliases;
  if (std::find(aliases.begin(), aliases.end(), name) != aliases.end()) return models_.begin()->second;
  return ModelNotFound(name);
}

void InferenceServiceImpl::PrepareAndSubmit(const LivePtr& live) {
  if (live->cancelled()) return EndPreparing();
  const GenerateRequest& request = live->request();
  std::variant<ModelFacts, ApiError> found = [&] {
    MutexLock lock(mu_);
    return FindModel(request.model);
  }();
  if (auto* error = std::get_if<ApiError>(&found)) {
    if (error->code == "shutting_down") metrics_.rejections.draining->Increment();
    if (error->code == "no_ready_worker") metrics_.rejections.no_worker->Increment();
    return Refuse(live, std::move(*error));
  }
  const ModelFacts& model = std::get<ModelFacts>(found);
  std::variant<PreparedRequest, ApiError> prepared = Prepare(request, *text_, model, options_.sampling, RandomSeed());
  if (auto* error = std::get_if<ApiError>(&prepared)) {
    if (error->code == "context_length_exceeded") metrics_.rejections.too_large->Increment();
    return Refuse(live, std::move(*error));
  }
  const absl::Duration time_max =
      request.timeout_seconds > 0 ? absl::Seconds(request.timeout_seconds) : absl::InfiniteDuration();
  std::vector<uint64_t> prefix = std::move(std::get<PreparedRequest>(prepared).prefix);
  live->Prepared(std::move(std::get<PreparedRequest>(prepared)), model, *text_, options_.canvas_interval,
                 live->accepted() + std::min(time_max, options_.dispatcher.request_time_max));
  const Admission admission{.id = live->id(),
                            .model = model.name,
                            .tenant = request.tenant,
                            .priority = request.priority,
                            .choices = request.choices,
                            .prompt_tokens = live->prompt_tokens(),
                            .max_tokens = live->max_tokens(),
                            .accepted = live->accepted(),
                            .time_max = time_max,
                            .latency_target = live->target() - live->accepted(),
                            .prefix = std::move(prefix)};
  Effects effects;
  {
    MutexLock lock(mu_);
    --preparing_;
    changed_.NotifyAll();
    // A Cancel() that came first has set this; one that comes now finds the request in the dispatcher.
    if (live->cancelled()) return;
    live_[live->id()] = live;
    const absl::Duration now = MonotonicNow();
    const Actions actions = dispatcher_.Submit(admission, now);
    live->SetRates(dispatcher_.Rates(request.tenant, now));
    Execute(actions, now, effects);
  }
  RunEffects(effects);
}

void InferenceServiceImpl::CancelRequest(const LivePtr& live) {
  Effects effects;
  {
    MutexLock lock(mu_);
    if (live_.erase(live->id()) == 0) return;
    const absl::Duration now = MonotonicNow();
    Execute(dispatcher_.Cancel(live->id(), now), now, effects);
    changed_.NotifyAll();
  }
  // Others may fail now; their sinks are not called on a front end's thread, which may hold its locks.
  if (effects.failures.empty()) return RunEffects(effects);
  pool_->AddUrgent([this, effects = std::move(effects)]() mutable { RunEffects(effects); });
}

}  // namespace quicksilver
