#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

/// A sequence as a coordinator knows it: its stream and its number there.
using SequenceKey = std::pair<uint64_t, uint64_t>;

struct Submission {
  uint64_t stream = 0;
  v1::Submit submit;
  absl::Duration submitted;  ///< MonotonicNow().
};

/// What came in since the last step.
struct Inbox {
  std::vector<Submission> submissions;
  std::set<SequenceKey> cancels;
  std::set<uint64_t> broken_streams;
  bool shutdown = false;
};

/// Where other threads leave work for the leader's loop. Everything it holds is bounded: submissions by `waiting_max`
/// (1 + 1/2 + 1/3 … times that when coordinators come one after the other and each finds the room full), cancels by the
/// sequences that are alive. Thread-safe.
class Mailbox {
 public:
  explicit Mailbox(int32_t waiting_max) : waiting_max_(waiting_max) {}

  /// `streams` coordinators are connected, of which none can take the waiting room for itself: each may fill an equal
  /// part of it. ResourceExhausted: that many sequences of the stream wait. InvalidArgument: the stream has a live
  /// sequence of this id. Unavailable: the loop has ended.
  absl::Status Submit(uint64_t stream, const v1::Submit& submit, int32_t streams);
  void Cancel(const SequenceKey& key);
  void CancelStream(uint64_t stream);
  void Shutdown();

  /// Returns what there is; when there is nothing and `idle`, waits for something, at most `idle_beat`. A part of the
  /// submissions may stay for the next call, so that one log entry stays small.
  Inbox Take(bool idle, absl::Duration idle_beat);
  /// The sequence has ended: its id may be used again.
  void Forget(const SequenceKey& key);
  /// How many sequences wait inside the scheduler, and how many of each stream have not started: these count against
  /// its part of `waiting_max`.
  void SetWaiting(int32_t waiting, const std::map<uint64_t, int32_t>& unstarted);
  /// Here and inside the scheduler.
  int32_t waiting() const;
  /// Refuses everything from now on.
  void Close();

 private:
  bool Empty() const REQUIRES_LOCK(mutex_);

  const int32_t waiting_max_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<Submission> submissions_ GUARDED_BY(mutex_);
  std::set<SequenceKey> live_ GUARDED_BY(mutex_);
  std::set<SequenceKey> cancels_ GUARDED_BY(mutex_);
  std::set<uint64_t> broken_streams_ GUARDED_BY(mutex_);
  int32_t scheduler_waiting_ GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, int32_t> unstarted_ GUARDED_BY(mutex_);  // By stream, of submissions_ and in the scheduler.
  bool shutdown_ GUARDED_BY(mutex_) = false;
  bool closed_ GUARDED_BY(mutex_) = false;
};

}  // namespace quicksilver
