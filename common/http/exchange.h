#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/http/message.h"
#include "common/mutex.h"

namespace quicksilver::http {

enum class EndReason {
  kDone,           ///< The whole reply was handed to the kernel, or Reset() was carried out.
  kClientGone,     ///< End of file or reset on the connection.
  kStalled,        ///< The client took nothing for the stall time; its connection was reset.
  kServerStopped,  ///< Stop() ran out of patience.
};

struct StreamOptions {
  size_t budget_bytes = 256 * 1024;
  std::string ping;  ///< Written after `ping_interval` without data. Empty: never.
  absl::Duration ping_interval = absl::Seconds(15);
  absl::Duration drained_interval = absl::Milliseconds(50);  ///< The least time between two calls of OnDrained.
};

/// One request and its reply: whoever answers holds it, on any thread. Thread-safe; calls after the end do nothing.
class Exchange {
 public:
  /// `notify` is called when there is something to Take(); it must not call back.
  /// `buffered_total` goes up and down with buffered_bytes(); it lives until End().
  Exchange(std::function<void()> notify, std::atomic<int64_t>& buffered_total);

  /// Called once, on the connection's thread, when the exchange is over for whatever reason. It may come before
  /// Reply or Finish (the client is gone). Set both before the handler returns.
  void OnEnd(std::function<void(EndReason)> callback);
  /// Called on the connection's thread when half the budget is free again after Write() refused.
  void OnWritable(std::function<void()> callback);

  /// Called on the connection's thread, once for all AskDrained() so far, when everything written is with the kernel.
  /// The place to write what is only worth its newest state.
  void OnDrained(std::function<void()> callback);

  /// The whole reply. The first Reply or StartStream counts.
  void Reply(Response response);
  /// Status and headers of a reply whose body comes piece by piece (`head.body` is its beginning).
  void StartStream(Response head, StreamOptions options);
  /// Takes `data` while less than the budget waits to be sent; else returns false and takes nothing. True after the
  /// end.
  bool Write(std::string_view data);
  void AskDrained();
  /// The orderly end of a stream.
  void Finish();
  /// The client must not take what it has for the whole: resets the connection.
  void Reset();
  /// Runs `task` on the connection's thread, if the exchange is not over.
  void Post(std::function<void()> task);
  size_t buffered_bytes() const;

  /// What the connection has to do; the connection's side of the mailbox.
  struct Work {
    bool reply = false;         ///< `head` is the whole reply.
    bool start_stream = false;  ///< `head` is to be sent.
    Response head;
    StreamOptions options;
    std::string data;
    bool finish = false, reset = false;
    bool drained_asked = false;
    std::vector<std::function<void()>> tasks;
  };
  Work Take();
  /// Calls OnDrained.
  void Drained();
  /// `bytes` of Work::data were sent; may call OnWritable.
  void Sent(size_t bytes);
  void End(EndReason reason);

 private:
  void Notify() REQUIRES_LOCK(mutex_);
  void AddUnsent(int64_t bytes) REQUIRES_LOCK(mutex_);

  std::atomic<int64_t>& buffered_total_;
  mutable Mutex mutex_;
  std::function<void()> notify_ GUARDED_BY(mutex_);
  std::function<void(EndReason)> on_end_ GUARDED_BY(mutex_);
  std::function<void()> on_writable_ GUARDED_BY(mutex_);
  std::function<void()> on_drained_ GUARDED_BY(mutex_);
  bool notified_ GUARDED_BY(mutex_) = false;
  bool answered_ GUARDED_BY(mutex_) = false;
  bool refused_write_ GUARDED_BY(mutex_) = false;
  bool drained_asked_ GUARDED_BY(mutex_) = false;
  bool over_ GUARDED_BY(mutex_) = false;
  size_t unsent_ GUARDED_BY(mutex_) = 0;  ///< Bytes in work_.data and on their way.
  size_t budget_ GUARDED_BY(mutex_) = 0;
  Work work_ GUARDED_BY(mutex_);
};

}  // namespace quicksilver::http
