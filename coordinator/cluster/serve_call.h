#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "common/mutex.h"
#include "coordinator/cluster/cluster.h"
#include "quicksilver/v1/worker.grpc.pb.h"

namespace quicksilver {

/// One Serve stream, from the dialling to its end.
class ServeCall : public grpc::ClientBidiReactor<v1::CoordinatorMessage, v1::WorkerMessage> {
 public:
  using MessageHandler = std::function<void(ServeCall& call, const v1::WorkerMessage& message)>;
  using EndHandler = std::function<void(ServeCall& call, const grpc::Status& status)>;

  /// `on_message` is called for one message after the other, then `on_end` once, as the last thing of this call.
  static std::shared_ptr<ServeCall> Start(v1::Worker::Stub& stub, Connection connection, const std::string& coordinator,
                                          MessageHandler on_message, EndHandler on_end);

  void Enqueue(std::unique_ptr<v1::CoordinatorMessage> message);
  void Flush();
  /// Ends the stream soon; `on_end` still comes.
  void Cancel() { context_.TryCancel(); }
  Connection connection() const { return connection_; }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  // A group that takes nothing for so long is lost by its lease well before; this bounds the memory until then.
  static constexpr size_t kOutboxMax = 16384;

  ServeCall(Connection connection, MessageHandler on_message, EndHandler on_end)
      : connection_(connection), on_message_(std::move(on_message)), on_end_(std::move(on_end)) {}

  const Connection connection_;
  const MessageHandler on_message_;
  const EndHandler on_end_;
  grpc::ClientContext context_;
  v1::WorkerMessage incoming_;
  std::shared_ptr<ServeCall> self_;  // Until OnDone.

  Mutex mu_;
  std::deque<std::unique_ptr<v1::CoordinatorMessage>> outbox_ GUARDED_BY(mu_);
  std::unique_ptr<v1::CoordinatorMessage> outgoing_ GUARDED_BY(mu_);  // Set while a write is under way.
  bool broken_ GUARDED_BY(mu_) = false;                               // No write may start.
};

}  // namespace quicksilver
