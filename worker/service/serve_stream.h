#pragma once

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "common/mutex.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

/// Most that waits for a coordinator to read it: a few seconds of steps.
inline constexpr size_t kStreamMessagesMax = 4096;
inline constexpr size_t kStreamBytesMax = 16 << 20;

/// What a stream asks of its server. Called on gRPC's threads, without locks of the stream.
class ServeHandler {
 public:
  virtual ~ServeHandler() = default;
  virtual v1::GroupInfo Info() const = 0;
  virtual v1::Heartbeat Beat() = 0;
  /// What to answer when the sequence cannot run; an update without `end` when it has been taken.
  virtual v1::SequenceUpdate OnSubmit(uint64_t stream, const v1::Submit& submit) = 0;
  virtual void OnCancel(uint64_t stream, uint64_t sequence_id) = 0;
  /// The stream is over: the coordinator is gone, or was cut off. Once.
  virtual void OnClosed(uint64_t stream) = 0;
};

/// One coordinator's stream: reads its messages, writes what it is given, in order. Thread-safe.
class ServeStream final : public grpc::ServerBidiReactor<v1::CoordinatorMessage, v1::WorkerMessage> {
 public:
  ServeStream(uint64_t id, grpc::CallbackServerContext& context, ServeHandler& handler);
  void Begin() { StartRead(&incoming_); }

  void Push(v1::WorkerMessage message);
  /// Sends a heartbeat unless one is waiting to be sent, or the coordinator has not said hello.
  void PushBeat(v1::Heartbeat beat);
  /// Ends the stream with `status` once what is queued has been sent.
  void Close(const grpc::Status& status);

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Handle();
  void Break(const grpc::Status& status);
  /// Starts the next write or the end, whichever is due. Never called with the lock.
  void Advance();

  const uint64_t id_;
  grpc::CallbackServerContext& context_;
  ServeHandler& handler_;
  v1::CoordinatorMessage incoming_;  // gRPC's and OnReadDone's.
  v1::WorkerMessage outgoing_;       // gRPC's while writing_.

  // Not mutex_: gRPC may end a write within TryCancel().
  Mutex context_mutex_;
  bool done_ GUARDED_BY(context_mutex_) = false;  // gRPC frees the context next.
  Mutex mutex_;
  std::deque<v1::WorkerMessage> queue_ GUARDED_BY(mutex_);
  size_t queue_bytes_ GUARDED_BY(mutex_) = 0;
  bool greeted_ GUARDED_BY(mutex_) = false;
  bool beat_queued_ GUARDED_BY(mutex_) = false;
  bool writing_ GUARDED_BY(mutex_) = false;
  bool broken_ GUARDED_BY(mutex_) = false;    // Nothing more is sent.
  bool closing_ GUARDED_BY(mutex_) = false;   // Finish when the queue is empty.
  bool finished_ GUARDED_BY(mutex_) = false;  // Finish was called.
  grpc::Status status_ GUARDED_BY(mutex_);
};

}  // namespace quicksilver
