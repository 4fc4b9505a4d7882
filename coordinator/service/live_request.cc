#include "coordinator/service/live_request.h"

#include <algorithm>
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

// So much before the deadline the worker is to stop: its last step and the way back take time, too.
constexpr absl::Duration kDeadlineMargin = absl::Milliseconds(10);

// At least 1: 0 is none.
uint64_t MicrosUntil(absl::Duration end, absl::Duration now) {
  return static_cast<uint64_t>(std::max<int64_t>(absl::ToInt64Microseconds(end - kDeadlineMargin - now), 1));
}

// The field that a refusal is about: those of invalid values begin with it, "decoding.steps (9) must be …" or
// "decoding.steps must be …".
std::string FieldOf(const std::string& message) {
  const size_t end = message.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.[]");
  if (end == std::string::npos || end == 0) return "";
  const bool named = message.compare(end, 2, " (") == 0 || message.compare(end, 9, " must be ") == 0;
  return named ? message.substr(0, end) : "";
}

// What a worker says about a sequence that it gave up, in the client's terms.
ApiError WorkerError(const v1::SequenceEnd& end, const GenerateRequest& request) {
  const std::string& code = end.error_code();
  std::string message = end.error_message();
  std::string field = FieldOf(message);
  if (code == "not_implemented") return NotImplementedError(field, message);
  if (code == "invalid_value" || code == "context_length_exceeded" || code == "unsupported_parameter") {
    for (const char* path : {"suffix_ids", "fixed_ids", "draft_ids"}) {
      if (field.rfind(path, 0) != 0) continue;
      field = "infill." + field;
      message = "infill." + message;
      break;
    }
    if (field.rfind("prompt_ids", 0) == 0) field = InputParam(request);
    return InvalidRequest(code, field, message);
  }
  return InternalError(code.empty() ? "internal_error" : code, message);
}

uint32_t BlockLength(const DecodingChoice& decoding, const ModelFacts& model) {
  return std::max(static_cast<uint32_t>(decoding.Get("block_length").value_or(model.block_length)), 1u);
}

}  // namespace

LiveRequest::LiveRequest(RequestId id, GenerateRequest request, std::shared_ptr<ResponseSink> sink,
                         absl::Duration accepted, int64_t created)
    : id_(id), request_(std::move(request)), accepted_(accepted), created_(created), sink_(std::move(sink)) {}

void LiveRequest::Prepared(PreparedRequest prepared, const ModelFacts& model, const TextModel& text,
                           absl::Duration canvas_interval, absl::Duration deadline) {
  prompt_tokens_ = prepared.prompt_tokens;
  max_tokens_ = prepared.max_tokens;
  prompt_characters_ = prepared.prompt_characters;
  deadline_ = deadline;
  MutexLock lock(mu_);
  submit_ = std::move(prepared.submit);
  unfinished_ = request_.choices;
  ChoiceSettings settings{.prompt_tokens = static_cast<uint32_t>(submit_.prompt_ids_size()),
                          .max_tokens = max_tokens_,
                          .suffix_tokens = static_cast<uint32_t>(submit_.suffix_ids_size()),
                          .grid = model.grid,
                          .block_length = BlockLength(request_.decoding, model),
                          .given = {submit_.fixed_ids().begin(), submit_.fixed_ids().end()},
                          .draft = {submit_.draft_ids().begin(), submit_.draft_ids().end()},
                          .stops = request_.stop,
                          .stop_ids = model.stop_ids,
                          .log_probabilities = request_.top_log_probabilities.has_value(),
                          .canvases = request_.canvases,
                          .canvas_interval = canvas_interval,
                          .accepted = accepted_};
  // A bidirectional model's last block is of a length that the coordinator does not know, but within the model's.
  settings.positions_max = model.grid == v1::GRID_AFTER_PROMPT
                               ? std::max(model.max_model_len, settings.prompt_tokens + max_tokens_)
                               : settings.prompt_tokens + max_tokens_ + settings.block_length;
  for (uint32_t choice = 0; choice < request_.choices; ++choice) {
    settings.choice = choice;
    choices_.emplace_back().stream = std::make_unique<ChoiceStream>(text, settings);
  }
}

void LiveRequest::SetRates(TenantRates rates) {
  MutexLock lock(mu_);
  rates_ = rates;
}

absl::Duration LiveRequest::target() const {
  if (request_.latency_target_seconds <= 0) return absl::InfiniteDuration();
  return accepted_ + absl::Seconds(request_.latency_target_seconds);
}

std::unique_ptr<v1::CoordinatorMessage> LiveRequest::OnPlaced(const Placement& placement, absl::Duration now) {
  MutexLock lock(mu_);
  Choice& choice = choices_[placement.choice];
  choice.sequence = placement.sequence;
  if (choice.stream->finished() || (started_ && placement.fingerprint != fingerprint_)) return nullptr;
  ++choice.placements;
  choice.place = {placement.group, now};
  const bool resumes = placement.cause == SubmitCause::kLost || placement.cause == SubmitCause::kMoved;
  choice.stream->OnPlaced(resumes, now);
  if (resumes && !choice.left_at) choice.left_at = placement.left_at;
  fingerprint_ = placement.fingerprint;
  auto message = std::make_unique<v1::CoordinatorMessage>();
  v1::Submit& submit = *message->mutable_submit();
  submit = submit_;
  submit.set_choice(placement.choice);
  submit.set_sequence_id(static_cast<uint64_t>(placement.sequence));
  submit.set_deadline_micros(MicrosUntil(std::min(deadline_, target()), now));
  if (target() != absl::InfiniteDuration()) submit.set_target_micros(MicrosUntil(target(), now));
  v1::Checkpoint record = choice.stream->Record();
  if (record.step() > 0) *submit.mutable_checkpoint() = std::move(record);
  return message;
}

bool LiveRequest::HasEnded(uint32_t choice) const {
  MutexLock lock(mu_);
  return choices_[choice].stream->finished();
}

uint32_t LiveRequest::completion_tokens(uint32_t choice) const {
  MutexLock lock(mu_);
  return choices_[choice].stream->completion_tokens();
}

LiveRequest::LastPlace LiveRequest::last_place(uint32_t choice) const {
  MutexLock lock(mu_);
  return choices_[choice].place;
}

LiveRequest::Applied LiveRequest::Apply(uint32_t choice, const v1::SequenceUpdate& update, uint64_t epoch,
                                        absl::Duration now) {
  MutexLock lock(mu_);
  Choice& one = choices_[choice];
  if (closed_ || one.stream->finished() || static_cast<uint64_t>(one.sequence) != update.sequence_id()) return {};
  return ApplyLocked(one, update, epoch, now);
}

std::optional<LiveRequest::Applied> LiveRequest::Refused(const v1::SequenceEnd& end) const {
  switch (end.reason()) {
    case v1::SequenceEnd::REASON_STOP:
    case v1::SequenceEnd::REASON_LENGTH:
      return std::nullopt;
    case v1::SequenceEnd::REASON_DEADLINE:
      // It worked up to the earlier of the two; only the target asks for a part of the answer.
      if (target() <= deadline_) return std::nullopt;
      return Applied{.outcome = Outcome::kFailed, .error = DeadlineExceeded()};
    case v1::SequenceEnd::REASON_CANCELLED:  // Not by us: nobody reads what we cancelled.
      return Applied{.outcome = Outcome::kReturned};
    default:
      break;
  }
  const std::string& code = end.error_code();
  if (code == "server_is_overloaded" || code == "shutting_down" || code == "worker_lost") {
    return Applied{.outcome = Outcome::kReturned};
  }
  return Applied{.outcome = Outcome::kFailed, .error = WorkerError(end, request_)};
}

LiveRequest::Applied LiveRequest::ApplyLocked(Choice& choice, const v1::SequenceUpdate& update, uint64_t epoch,
                                              absl::Duration now) {
  if (update.has_end()) {
    if (std::optional<Applied> refused = Refused(update.end())) return *std::move(refused);
  }
  // Only now: the worker has taken it. What it refuses must reach the client as a status, not as the end of a stream.
  if (!std::exchange(started_, true)) {
    pending_.emplace_back(StartedEvent{request_.model, "fp_" + fingerprint_.substr(0, 10), created_, prompt_tokens_,
                                       rates_, prompt_characters_});
  }
  ChoiceStream& stream = *choice.stream;
  const uint32_t before = stream.completion_tokens();
  std::vector<ChoiceEvent> events;
  const absl::Status status = stream.Apply(update, epoch, now, events);
  if (!status.ok()) {
    const bool diverged = choice.placements > 1;
    return {.outcome = Outcome::kFailed,
            .error = diverged ? ResumeDivergence() : InternalError("internal_error", "The worker broke the protocol."),
            .diverged = diverged};
  }
  Applied applied{.outcome = Outcome::kGoesOn, .output_tokens = stream.completion_tokens()};
  applied.new_tokens = applied.output_tokens - std::min(before, applied.output_tokens);
  applied.new_forwards = update.step() - std::min(choice.step, update.step());
  choice.step = std::max(choice.step, update.step());
  if (const std::optional<absl::Duration> left_at = std::exchange(choice.left_at, std::nullopt)) {
    applied.resumed = now - *left_at;
  }
  if (applied.output_tokens > 0 && !std::exchange(choice.first_block, true)) applied.first_block = now - accepted_;
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
