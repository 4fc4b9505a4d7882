#include "coordinator/frontend/grpc/generate_call.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "coordinator/frontend/tenant_name.h"

namespace quicksilver {
namespace {

constexpr const char* kRoute = "Generate";

// Of a delta with log-probabilities that others are joined to: clients take 4 MiB by default.
constexpr int kDeltaTokensMax = 1024;

std::string NewRequestId() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return absl::StrCat("req-", absl::Hex(random(), absl::kZeroPad16), absl::Hex(random(), absl::kZeroPad16));
}

std::string MetadataOf(const grpc::CallbackServerContext& context, const char* key) {
  const auto it = context.client_metadata().find(key);
  return it == context.client_metadata().end() ? "" : std::string(it->second.data(), it->second.size());
}

// Seconds left until the client gives up; 0 when it named no deadline.
double TimeoutOf(const grpc::CallbackServerContext& context) {
  // gRPC's "no deadline" is a date centuries away.
  const absl::Duration left = absl::FromChrono(context.deadline()) - absl::Now();
  return left > absl::Hours(24 * 365) ? 0 : std::max(absl::ToDoubleSeconds(left), 1e-3);
}

}  // namespace

GenerateCall::GenerateCall(grpc::CallbackServerContext& context, Inference& inference, Metrics& metrics,
                           std::function<void(const std::shared_ptr<GenerateCall>&)> on_done)
    : context_(context), inference_(inference), metrics_(metrics), on_done_(std::move(on_done)) {}

void GenerateCall::Begin(const v1::GenerateRequest& proto, const GrpcLimits& limits, const std::string& tenant_header) {
  self_ = shared_from_this();
  request_id_ = MetadataOf(context_, "x-request-id");
  if (!IsRequestId(request_id_)) request_id_ = NewRequestId();
  context_.AddInitialMetadata("x-request-id", request_id_);
  if (!MetadataOf(context_, "grpc-previous-rpc-attempts").empty()) metrics_.sdk_retries.Increment();
  std::variant<GenerateRequest, ApiError> parsed = FromProto(proto, limits);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return End(*error);
  GenerateRequest& request = std::get<GenerateRequest>(parsed);
  const std::variant<std::string, ApiError> tenant = Tenant(tenant_header);
  if (const auto* error = std::get_if<ApiError>(&tenant)) return End(*error);
  request.tenant = tenant_ = std::get<std::string>(tenant);
  request.request_id = request_id_;
  request.timeout_seconds = TimeoutOf(context_);
  {
    MutexLock lock(mu_);
    unfinished_ = request.choices;
    frames_.resize(request.choices);
  }
  call_ = inference_.Start(std::move(request), self_);
}

std::variant<std::string, ApiError> GenerateCall::Tenant(const std::string& header) const {
  std::vector<std::string> values;
  if (!header.empty()) {
    const auto [begin, end] = context_.client_metadata().equal_range(header);
    for (auto it = begin; it != end; ++it) values.emplace_back(it->second.data(), it->second.size());
  }
  return TenantName(header, values);
}

void GenerateCall::OnStarted(const StartedEvent& event) { Push(ToProto(event, request_id_)); }
void GenerateCall::OnDelta(const DeltaEvent& event) { Push(ToProto(event)); }

void GenerateCall::OnFrame(const FrameEvent& event) {
  {
    MutexLock lock(mu_);
    if (event.choice < frames_.size()) frames_[event.choice].Add(event);
  }
  Pump();
}

void GenerateCall::OnFinished(const FinishedEvent& event) {
  bool last = false;
  {
    MutexLock lock(mu_);
    if (event.choice == 0) finish_reason_ = event.reason == FinishReason::kStop ? "stop" : "length";
    last = --unfinished_ == 0;
  }
  if (last) Count(200);
  Push(ToProto(event), last);
}

void GenerateCall::OnError(const ApiError& error) { End(error); }

void GenerateCall::End(const ApiError& error) {
  Count(error.http_status);
  {
    MutexLock lock(mu_);
    if (!end_) end_ = ToStatus(error, request_id_, tenant_);
  }
  Pump();
}

void GenerateCall::Push(v1::GenerateEvent event, bool last) {
  {
    MutexLock lock(mu_);
    if (finish_called_) return;
    const bool joins = event.has_delta() && !outbox_.empty() && outbox_.back().has_delta() &&
                       outbox_.back().delta().choice() == event.delta().choice() &&
                       outbox_.back().delta().tokens_size() < kDeltaTokensMax;
    if (joins) {
      v1::Delta& waiting = *outbox_.back().mutable_delta();
      waiting.mutable_text()->append(event.delta().text());
      waiting.set_block(event.delta().block());
      waiting.set_step(event.delta().step());
      waiting.mutable_tokens()->MergeFrom(event.delta().tokens());
    } else {
      outbox_.push_back(std::move(event));
    }
    // Together with the event, or a write that is just done would end the stream before it.
    if (last && !end_) end_ = grpc::Status::OK;
  }
  Pump();
}

// Moves what is to be written next to writing_; false when nothing is. A choice's frames come before its end.
bool GenerateCall::NextEvent() {
  for (uint32_t choice = 0; choice < frames_.size(); ++choice) {
    const bool ends =
        !outbox_.empty() && outbox_.front().has_finished() && outbox_.front().finished().choice() == choice;
    if (frames_[choice].empty() || !(outbox_.empty() || ends)) continue;
    writing_ = ToProto(frames_[choice].Take());
    return true;
  }
  if (outbox_.empty()) return false;
  writing_ = std::move(outbox_.front());
  outbox_.pop_front();
  return true;
}

void GenerateCall::Pump() {
  std::optional<grpc::Status> finish;
  grpc::WriteOptions options;
  bool write = false;
  {
    MutexLock lock(mu_);
    if (write_began_ || finish_called_) return;
    write = NextEvent();
    if (write) write_began_ = MonotonicNow();
    const bool more = !outbox_.empty() || std::any_of(frames_.begin(), frames_.end(),
                                                      [](const FrameQueue& queue) { return !queue.empty(); });
    if (!more) {
      finish = end_;
      finish_called_ = finish.has_value();
    } else {
      options.set_buffer_hint();  // One system call for all that waits.
    }
  }
  if (write && finish) {
    StartWriteAndFinish(&writing_, options, *finish);
  } else if (write) {
    StartWrite(&writing_, options);
  } else if (finish) {
    Finish(*finish);
  }
}

void GenerateCall::OnWriteDone(bool ok) {
  {
    MutexLock lock(mu_);
    write_began_.reset();
    if (!ok) {
      outbox_.clear();
      frames_.clear();
      if (!end_) end_ = grpc::Status(grpc::StatusCode::CANCELLED, "The client is gone.");
    }
  }
  Pump();
}

// The client is gone, or its deadline has passed.
void GenerateCall::OnCancel() {
  if (call_ != nullptr) call_->Cancel();
  Count(499);
  {
    MutexLock lock(mu_);
    outbox_.clear();
    frames_.clear();
    if (!end_) end_ = grpc::Status(grpc::StatusCode::CANCELLED, "The client is gone.");
  }
  Pump();
}

void GenerateCall::OnDone() {
  const std::shared_ptr<GenerateCall> self = std::move(self_);
  {
    MutexLock lock(mu_);
    write_began_
        .reset();  // The last write ends with the call alone; CutIfStalled() must not touch the context any more.
  }
  call_.reset();
  on_done_(self);
}

void GenerateCall::CutIfStalled(absl::Duration since) {
  MutexLock lock(mu_);
  if (!write_began_ || *write_began_ >= since) return;
  write_began_ = absl::InfiniteDuration();  // Once.
  metrics_.slow_client_disconnects.Increment();
  context_.TryCancel();  // Under the lock: the write cannot end before, so the context is still there.
}

void GenerateCall::Count(int code) {
  std::string finish_reason;
  {
    MutexLock lock(mu_);
    if (std::exchange(counted_, true)) return;
    if (code == 200) finish_reason = finish_reason_;
  }
  if (code == 499) metrics_.client_disconnects.Increment();
  metrics_.CountRequest(kRoute, code, finish_reason);
}

}  // namespace quicksilver
