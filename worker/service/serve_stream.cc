#include "worker/service/serve_stream.h"

#include <utility>

namespace quicksilver {

ServeStream::ServeStream(uint64_t id, grpc::CallbackServerContext& context, ServeHandler& handler)
    : id_(id), context_(context), handler_(handler) {}

void ServeStream::Push(v1::WorkerMessage message) {
  const size_t bytes = message.ByteSizeLong();
  bool fits = false;
  {
    MutexLock lock(mutex_);
    if (broken_ || closing_) return;
    fits = queue_.size() < kStreamMessagesMax && queue_bytes_ + bytes <= kStreamBytesMax;
    if (fits) {
      queue_bytes_ += bytes;
      queue_.push_back(std::move(message));
    }
  }
  if (fits) return Advance();
  Break({grpc::StatusCode::RESOURCE_EXHAUSTED, "the coordinator reads too slowly"});
  MutexLock lock(context_mutex_);
  if (!done_) context_.TryCancel();  // A write that its flow control holds back ends, too.
}

void ServeStream::PushBeat(v1::Heartbeat beat) {
  {
    MutexLock lock(mutex_);
    if (!greeted_ || beat_queued_) return;
    beat_queued_ = true;
  }
  v1::WorkerMessage message;
  *message.mutable_heartbeat() = std::move(beat);
  Push(std::move(message));
}

void ServeStream::Close(const grpc::Status& status) {
  {
    MutexLock lock(mutex_);
    if (closing_) return;
    closing_ = true;
    status_ = status;
  }
  Advance();
}

void ServeStream::Advance() {
  bool finish = false;
  grpc::Status status;
  {
    MutexLock lock(mutex_);
    if (writing_ || finished_) return;
    if (!broken_ && !queue_.empty()) {
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      queue_bytes_ -= outgoing_.ByteSizeLong();
      if (outgoing_.has_heartbeat()) beat_queued_ = false;
      writing_ = true;
    } else if (closing_ || broken_) {
      finished_ = finish = true;
      status = status_;
    } else {
      return;
    }
  }
  // Without the lock: gRPC may run OnWriteDone on this very stack. writing_ and finished_ keep everyone else away.
  if (finish) {
    Finish(status);
  } else {
    StartWrite(&outgoing_);
  }
}

void ServeStream::OnWriteDone(bool ok) {
  {
    MutexLock lock(mutex_);
    writing_ = false;
    if (!ok) broken_ = true;
  }
  Advance();
}

void ServeStream::OnReadDone(bool ok) {
  if (!ok) {
    Break(grpc::Status::OK);
    context_.TryCancel();
    return;
  }
  Handle();
  StartRead(&incoming_);
}

void ServeStream::Handle() {
  bool greeted = false;
  {
    MutexLock lock(mutex_);
    greeted = std::exchange(greeted_, true);
  }
  if (incoming_.has_hello() == greeted) {
    const char* reason = greeted ? "hello came twice" : "the first message is not hello";
    return Break({grpc::StatusCode::INVALID_ARGUMENT, reason});
  }
  if (incoming_.has_hello()) {
    v1::WorkerMessage message;
    *message.mutable_info() = handler_.Info();
    Push(std::move(message));
    PushBeat(handler_.Beat());
  } else if (incoming_.has_submit()) {
    v1::SequenceUpdate refusal = handler_.OnSubmit(id_, incoming_.submit());
    if (!refusal.has_end()) return;
    v1::WorkerMessage message;
    message.mutable_step()->set_epoch(handler_.Info().epoch());
    *message.mutable_step()->add_updates() = std::move(refusal);
    Push(std::move(message));
  } else if (incoming_.has_cancel()) {
    handler_.OnCancel(id_, incoming_.cancel().sequence_id());
  }
}

void ServeStream::Break(const grpc::Status& status) {
  {
    MutexLock lock(mutex_);
    broken_ = true;
    if (!closing_) status_ = status;
    closing_ = true;
    queue_.clear();
    queue_bytes_ = 0;
  }
  Advance();
}

void ServeStream::OnCancel() { Break(grpc::Status::CANCELLED); }

void ServeStream::OnDone() {
  {
    MutexLock lock(context_mutex_);
    done_ = true;
  }
  handler_.OnClosed(id_);
}

}  // namespace quicksilver
