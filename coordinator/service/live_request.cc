#include "coordinator/service/live_request.h"

#include <utility>

namespace quicksilver {
namespace {

struct Send {
  ResponseSink& sink;
  void operator()(const StartedEvent& event) const { sink.OnStarted(event); }
  void operator()(const DeltaEvent& event) const { sink.OnDelta(event); }
  void operator()(const FrameEvent& event) const { sink.OnFrame(event); }
  void operator()(const FinishedEvent& event) const { sink.OnFinished(event); }
  void operator()(const ApiError& error) const { sink.OnError(error); }
};

// What a worker says about a sequence that it gave up, in the client's terms.
ApiError WorkerError(const v1::SequenceEnd& end) {
  if (end.reason() == v1::SequenceEnd::REASON_CANCELLED) return WorkerLost();
  const std::string& code = end.error_code();
  if (code == "server_is_overloaded") return Overloaded(end.error_message(), 1);
  if (code == "shutting_down") return ShuttingDown();
  if (code == "worker_lost") return WorkerLost();
  if (code == "not_implemented") return NotImplementedError("", end.error_message());
  if (code == "invalid_value" || code == "context_length_exceeded" || code == "unsupported_parameter") {
    return InvalidRequest(code, "", end.error_message());
  }
  return InternalError(code.empty() ? "internal_error" : code, end.error_message());
}

}  // namespace

LiveRequest::LiveRequest(RequestId id, GenerateRequest request, std::shared_ptr<ResponseSink> sink,
                         absl::Duration accepted, int64_t created)
    : id_(id), request_(std::move(request)), accepted_(accepted), created_(created), sink_(std::move(sink)) {}

void LiveRequest::Prepared(PreparedRequest prepared, const ModelFacts& model, const TextModel& text,
                           absl::Duration canvas_interval) {
  prompt_tokens_ = prepared.prompt_tokens;
  max_tokens_ = prepared.max_tokens;
  MutexLock lock(mu_);
  submits_ = std::move(prepared.submits);
  unfinished_ = static_cast<uint32_t>(submits_.size());
  for (uint32_t choice = 0; choice < submits_.size(); ++choice) {
    choices_.push_back(std::make_unique<ChoiceStream>(
        text, ChoiceSettings{.choice = choice,
                             .prompt_tokens = prompt_tokens_,
                             .max_tokens = max_tokens_,
                             .block_length = std::max(request_.decoding.block_length.value_or(model.block_length), 1u),
                             .stops = request_.stop,
                             .stop_ids = model.stop_ids,
                             .canvases = request_.canvases,
                             .canvas_interval = canvas_interval,
                             .accepted = accepted_}));
  }
}

std::unique_ptr<v1::CoordinatorMessage> LiveRequest::OnPlaced(uint32_t choice, SequenceId sequence,
                                                              const std::string& fingerprint, absl::Duration now) {
  MutexLock lock(mu_);
  choices_[choice]->OnPlaced(now);
  std::unique_ptr<v1::CoordinatorMessage> message = std::move(submits_[choice]);
  message->mutable_submit()->set_sequence_id(static_cast<uint64_t>(sequence));
  fingerprint_ = fingerprint;
  return message;
}

LiveRequest::Applied LiveRequest::Apply(uint32_t choice, const v1::SequenceUpdate& update, uint64_t epoch,
                                        absl::Duration now) {
  MutexLock lock(mu_);
  if (closed_) return {};
  return ApplyLocked(choice, update, epoch, now);
}

LiveRequest::Applied LiveRequest::ApplyLocked(uint32_t choice, const v1::SequenceUpdate& update, uint64_t epoch,
                                              absl::Duration now) {
  const v1::SequenceEnd::Reason reason = update.end().reason();
  if (update.has_end() && reason != v1::SequenceEnd::REASON_STOP && reason != v1::SequenceEnd::REASON_LENGTH) {
    return {Outcome::kFailed, WorkerError(update.end()), std::nullopt};
  }
  ChoiceStream& stream = *choices_[choice];
  if (stream.finished()) return {};
  // Only now: the worker has taken it. What it refuses must reach the client as a status, not as the end of a stream.
  if (!std::exchange(started_, true)) {
    pending_.emplace_back(StartedEvent{request_.model, "fp_" + fingerprint_.substr(0, 10), created_, prompt_tokens_});
  }
  std::vector<ChoiceEvent> events;
  const absl::Status status = stream.Apply(update, epoch, now, events);
  if (!status.ok()) {
    return {Outcome::kFailed, InternalError("internal_error", "The worker broke the protocol."), std::nullopt};
  }
  Applied applied;
  for (ChoiceEvent& event : events) {
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) applied.finished = *finished;
    pending_.push_back(std::visit([](auto& one) { return Event(std::move(one)); }, event));
  }
  if (!stream.finished()) return applied;
  applied.outcome = stream.stopped_here() ? Outcome::kStoppedHere : Outcome::kEndedByWorker;
  if (--unfinished_ == 0) closed_ = true;
  return applied;
}

void LiveRequest::Fail(ApiError error) {
  MutexLock lock(mu_);
  if (closed_) return;
  closed_ = true;
  pending_.emplace_back(std::move(error));
}

void LiveRequest::Deliver() {
  std::shared_ptr<ResponseSink> done;  // Let go of outside the lock: it may hold the Call.
  mu_.Lock();
  if (delivering_ || sink_ == nullptr) {
    mu_.Unlock();
    return;
  }
  delivering_ = true;
  deliverer_ = std::this_thread::get_id();
  const std::shared_ptr<ResponseSink> sink = sink_;
  while (!pending_.empty()) {
    const Event event = std::move(pending_.front());
    pending_.pop_front();
    mu_.Unlock();
    std::visit(Send{*sink}, event);
    mu_.Lock();
  }
  if (closed_) done = std::move(sink_);
  delivering_ = false;
  deliverer_ = {};
  idle_.NotifyAll();
  mu_.Unlock();
}

void LiveRequest::Cancel() {
  std::shared_ptr<ResponseSink> done;
  MutexLock lock(mu_);
  cut_off_ = cut_off_ || !closed_;
  cancelled_ = true;
  closed_ = true;
  pending_.clear();
  if (deliverer_ == std::this_thread::get_id()) return;
  while (delivering_) idle_.Wait(mu_);
  done = std::move(sink_);
}

bool LiveRequest::cancelled() const {
  MutexLock lock(mu_);
  return cancelled_;
}

bool LiveRequest::cut_off() const {
  MutexLock lock(mu_);
  return cut_off_;
}

}  // namespace quicksilver
