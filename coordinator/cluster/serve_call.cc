#include "coordinator/cluster/serve_call.h"

#include <utility>

namespace quicksilver {

std::shared_ptr<ServeCall> ServeCall::Start(v1::Worker::Stub& stub, Connection connection,
                                            const std::string& coordinator, Handlers handlers) {
  std::shared_ptr<ServeCall> call(new ServeCall(connection, std::move(handlers)));
  call->self_ = call;
  // Waits for the connection, so that a group is found as soon as its port opens.
  call->context_.set_wait_for_ready(true);
  stub.async()->Serve(&call->context_, call.get());
  call->AddHold();  // Writes start outside of reactions.
  auto hello = std::make_unique<v1::CoordinatorMessage>();
  hello->mutable_hello()->set_coordinator(coordinator);
  call->Enqueue(std::move(hello));
  call->Flush();
  call->StartRead(&call->incoming_);
  call->StartCall();
  return call;
}

void ServeCall::Enqueue(std::unique_ptr<v1::CoordinatorMessage> message) {
  MutexLock lock(mu_);
  if (broken_) return;
  if (outbox_.size() >= kOutboxMax) {
    context_.TryCancel();
    return;
  }
  outbox_.push_back(std::move(message));
}

void ServeCall::Flush() {
  const v1::CoordinatorMessage* message = nullptr;
  grpc::WriteOptions options;
  {
    MutexLock lock(mu_);
    if (broken_ || outgoing_ != nullptr || outbox_.empty()) return;
    outgoing_ = std::move(outbox_.front());
    outbox_.pop_front();
    message = outgoing_.get();
    if (!outbox_.empty()) options.set_buffer_hint();  // One system call for all that waits.
  }
  StartWrite(message, options);
}

void ServeCall::OnWriteDone(bool ok) {
  bool release = false;
  {
    MutexLock lock(mu_);
    outgoing_.reset();
    release = broken_;
    if (!ok) outbox_.clear();
  }
  if (release) {
    RemoveHold();
  } else if (ok) {
    Flush();
  }
}

void ServeCall::OnReadDone(bool ok) {
  if (ok) {
    handlers_.on_message(*this, incoming_);
    StartRead(&incoming_);
    return;
  }
  context_.TryCancel();  // A write that waits for a peer that is gone must not hold up the end.
  bool release = false;
  {
    MutexLock lock(mu_);
    broken_ = true;
    outbox_.clear();
    release = outgoing_ == nullptr;
  }
  if (release) RemoveHold();
}

void ServeCall::OnDone(const grpc::Status& status) {
  std::shared_ptr<ServeCall> self = std::move(self_);
  handlers_.on_end(*this, status);
  // The context holds the channel. Were its last reference dropped here, on a thread of gRPC's own, gRPC would wait for
  // this very thread; so the context goes before the owner of the channel is told that it may go.
  const std::function<void()> on_gone = handlers_.on_gone;
  self.reset();
  on_gone();
}

}  // namespace quicksilver
