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
  struct Handlers {
    MessageHandler on_message;      ///< For one message after the other.
    EndHandler on_end;              ///< Then once.
    std::function<void()> on_gone;  ///< When gRPC has let go of the call, and so have we.
  };

  static std::shared_ptr<ServeCall> Start(v1::Worker::Stub& stub, Connection connection, const std::string& coordinator,
                                          Handlers handlers);

  void Enqueue(std::unique_ptr<v1::CoordinatorMessage> message);
  void Flush();
  /// Ends the stream soon; on_end still comes.
  void Cancel() { context_.TryCancel(); }
  Connection connection() const { return connection_; }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  // A group that takes nothing for so long is lost by its lease well before; this bounds the memory until then.
  static constexpr size_t kOutboxMax = 16384;

  ServeCall(Connection connection, Handlers handlers) : connection_(connection), handlers_(std::move(handlers)) {}

  const Connection connection_;
  const Handlers handlers_;
  grpc::ClientContext context_;
  v1::WorkerMessage incoming_;
  std::shared_ptr<ServeCall> self_;  // Until OnDone.

  Mutex mu_;
  std::deque<std::unique_ptr<v1::CoordinatorMessage>> outbox_ GUARDED_BY(mu_);
  std::unique_ptr<v1::CoordinatorMessage> outgoing_ GUARDED_BY(mu_);  // Set while a write is under way.
  bool broken_ GUARDED_BY(mu_) = false;                               // No write may start.
};

}  // namespace quicksilver
