#include "coordinator/frontend/http/openai_generation.h"

#include <utility>

#include "coordinator/frontend/http/openai_extension.h"
#include "coordinator/frontend/http/openai_reply.h"

namespace quicksilver {

class OpenAiGeneration::Sink : public ResponseSink {
 public:
  Sink(std::shared_ptr<OpenAiGeneration> generation, size_t prompt)
      : generation_(std::move(generation)), prompt_(prompt) {}
  void OnStarted(const StartedEvent& event) override { generation_->OnStarted(prompt_, event); }
  void OnDelta(const DeltaEvent& event) override { generation_->OnDelta(prompt_, event); }
  void OnFrame(const FrameEvent& event) override { generation_->OnFrame(prompt_, event); }
  void OnFinished(const FinishedEvent& event) override { generation_->OnFinished(prompt_, event); }
  void OnError(const ApiError& error) override { generation_->OnError(error); }

 private:
  const std::shared_ptr<OpenAiGeneration> generation_;
  const size_t prompt_;
};

OpenAiGeneration::OpenAiGeneration(OpenAiRequest request, std::string id, std::string route,
                                   const OpenAiOptions& options, OpenAiObserver& observer,
                                   std::shared_ptr<http::Exchange> exchange)
    : request_(std::move(request)),
      id_(std::move(id)),
      route_(std::move(route)),
      options_(options),
      observer_(observer),
      exchange_(std::move(exchange)),
      answer_(request_, id_) {}

void OpenAiGeneration::Start(Inference& inference) {
  exchange_->OnEnd([self = shared_from_this()](http::EndReason reason) { self->OnEnd(reason); });
  exchange_->OnWritable([self = shared_from_this()] {
    MutexLock lock(self->mutex_);
    self->Pump();
  });
  exchange_->OnDrained([self = shared_from_this()] { self->WriteFrames(); });
  for (size_t prompt = 0; prompt < request_.generations.size(); ++prompt) {
    GenerateRequest& generation = request_.generations[prompt];
    generation.request_id = request_.generations.size() == 1 ? id_ : id_ + "-" + std::to_string(prompt);
    calls_.push_back(inference.Start(std::move(generation), std::make_shared<Sink>(shared_from_this(), prompt)));
  }
}

// The head waits for this event, so that an overload can still be a 503 (serving.md §8.3).
void OpenAiGeneration::OnStarted(size_t prompt, const StartedEvent& event) {
  MutexLock lock(mutex_);
  if (failed_) return;
  answer_.OnStarted(prompt, event);
  rates_ = event.rates;
  if (!request_.stream) return;
  if (status_ == 0) {
    status_ = 200;
    http::Response head;
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers = {{"cache-control", "no-cache"}, {"x-accel-buffering", "no"}};
    for (http::Header& header : RateHeaders(rates_)) head.headers.push_back(std::move(header));
    http::StreamOptions options;
    options.budget_bytes = options_.stream_budget_bytes;
    options.ping = ": ping\n\n";
    options.ping_interval = options_.ping_interval;
    options.drained_interval = request_.diffusing ? options_.canvas_interval : absl::ZeroDuration();
    exchange_->StartStream(std::move(head), std::move(options));
  }
  Pump();
}

void OpenAiGeneration::OnDelta(size_t prompt, const DeltaEvent& event) {
  MutexLock lock(mutex_);
  if (failed_) return;
  answer_.OnDelta(prompt, event);
  if (request_.stream) Pump();
}

void OpenAiGeneration::OnFrame(size_t prompt, const FrameEvent& event) {
  MutexLock lock(mutex_);
  if (failed_ || !request_.stream) return;
  answer_.OnFrame(prompt, event);
  exchange_->AskDrained();
}

// On the connection's thread when the client has taken all there was: until then frames are joined.
void OpenAiGeneration::WriteFrames() {
  MutexLock lock(mutex_);
  if (failed_ || finished_ || !unwritten_.empty()) return;
  unwritten_ = answer_.NextFrames();
  Pump();
}

void OpenAiGeneration::OnFinished(size_t prompt, const FinishedEvent& event) {
  MutexLock lock(mutex_);
  if (failed_) return;
  answer_.OnFinished(prompt, event);
  if (request_.stream) return Pump();
  if (!answer_.complete()) return;
  status_ = 200;
  http::Response response;
  response.body = answer_.Body();
  response.headers = RateHeaders(rates_);
  exchange_->Reply(std::move(response));
}

// Fails the whole answer: half of its choices are no answer.
void OpenAiGeneration::OnError(const ApiError& fault) {
  const ApiError error = InHttpTerms(fault);
  MutexLock lock(mutex_);
  if (failed_ || finished_) return;
  failed_ = true;
  if (status_ == 0) {
    status_ = error.http_status;
    exchange_->Reply(ToResponse(error));
  } else {
    status_ = error.http_status;
    unwritten_ += ErrorEvents(error);
    Pump();
  }
  // Not here: a sink call of another generation may be waiting for this lock, and Cancel waits for it.
  exchange_->Post([self = shared_from_this()] { self->calls_.clear(); });
}

// Writes what there is, as far as the client keeps up; OnWritable goes on.
void OpenAiGeneration::Pump() {
  while (!finished_) {
    if (unwritten_.empty() && !failed_) unwritten_ = answer_.NextEvents();
    if (!unwritten_.empty() && !exchange_->Write(unwritten_)) return;
    const bool wrote = !std::exchange(unwritten_, {}).empty();
    if (failed_ || answer_.exhausted()) {
      finished_ = true;
      exchange_->Finish();
      return;
    }
    if (!wrote) return;
  }
}

void OpenAiGeneration::OnEnd(http::EndReason reason) {
  for (const std::unique_ptr<Call>& call : calls_) {
    if (call && reason != http::EndReason::kDone) call->Cancel();
  }
  calls_.clear();
  int code = 499;
  std::string finish_reason;
  {
    MutexLock lock(mutex_);
    if (reason == http::EndReason::kDone) {
      code = status_;
      if (!failed_) finish_reason = answer_.first_finish_reason();
    } else if (reason == http::EndReason::kServerStopped) {
      code = 503;
    }
  }
  if (reason == http::EndReason::kClientGone) observer_.OnClientGone();
  if (reason == http::EndReason::kStalled) observer_.OnSlowClient();
  observer_.OnRequest(route_, code, finish_reason);
}

}  // namespace quicksilver
