#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "worker/collectives/communicator.h"

namespace quicksilver {

/// Control channels between threads of one process: messages in order, real waits and timeouts, no sockets. Rank 0
/// leads. After Close() every wait ends with Unavailable, as if a peer had died.
class ThreadedControlGroup {
 public:
  explicit ThreadedControlGroup(int size) : messages_(static_cast<size_t>(size)), size_(size) {}

  /// The channel of `rank`, for one thread. The group outlives it.
  std::unique_ptr<ControlChannel> Join(int rank) { return std::make_unique<Member>(*this, rank); }

  void Close() {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

 private:
  class Member final : public ControlChannel {
   public:
    Member(ThreadedControlGroup& group, int rank) : group_(group), rank_(rank) {}
    absl::StatusOr<std::string> Broadcast(std::string message, absl::Duration timeout) override {
      return rank_ == 0 ? group_.Send(std::move(message)) : group_.Receive(rank_, timeout);
    }
    absl::Status Barrier(absl::Duration timeout) override { return group_.Meet(timeout); }

   private:
    ThreadedControlGroup& group_;
    const int rank_;
  };

  absl::StatusOr<std::string> Send(std::string message) {
    MutexLock lock(mutex_);
    if (closed_) return absl::UnavailableError("control: a peer is gone");
    for (size_t rank = 1; rank < messages_.size(); ++rank) messages_[rank].push_back(message);
    changed_.NotifyAll();
    return message;
  }

  absl::StatusOr<std::string> Receive(int rank, absl::Duration timeout) {
    MutexLock lock(mutex_);
    std::deque<std::string>& queue = messages_[static_cast<size_t>(rank)];
    const absl::Duration until = MonotonicNow() + timeout;
    while (queue.empty() && !closed_) {
      if (MonotonicNow() >= until) return absl::UnavailableError("control: the leader is silent");
      changed_.WaitFor(mutex_, until - MonotonicNow());
    }
    if (queue.empty()) return absl::UnavailableError("control: the leader is gone");
    std::string message = std::move(queue.front());
    queue.pop_front();
    return message;
  }

  absl::Status Meet(absl::Duration timeout) {
    MutexLock lock(mutex_);
    const uint64_t meeting = meetings_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++meetings_;
      changed_.NotifyAll();
    }
    const absl::Duration until = MonotonicNow() + timeout;
    while (meetings_ == meeting && !closed_) {
      if (MonotonicNow() >= until) return absl::UnavailableError("control: a rank did not come");
      changed_.WaitFor(mutex_, until - MonotonicNow());
    }
    return meetings_ == meeting ? absl::UnavailableError("control: a peer is gone") : absl::OkStatus();
  }

  Mutex mutex_;
  CondVar changed_;
  std::vector<std::deque<std::string>> messages_ GUARDED_BY(mutex_);
  const int size_;
  int arrived_ GUARDED_BY(mutex_) = 0;
  uint64_t meetings_ GUARDED_BY(mutex_) = 0;
  bool closed_ GUARDED_BY(mutex_) = false;
};

}  // namespace quicksilver
