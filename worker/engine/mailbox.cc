#include "worker/engine/mailbox.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/clock.h"

namespace quicksilver {
namespace {

// Of one log entry, which the control channel bounds (kControlMessageBytesMax); a single longer submission still goes.
constexpr int64_t kEntryTokensMax = 1 << 17;

int64_t TokensOf(const v1::Submit& submit) {
  return int64_t{submit.prompt_ids_size()} + submit.stop_ids_size() + submit.checkpoint().tokens_size();
}

}  // namespace

absl::Status Mailbox::Submit(uint64_t stream, const v1::Submit& submit, int32_t streams) {
  const SequenceKey key(stream, submit.sequence_id());
  const int32_t share = std::max(1, waiting_max_ / std::max(1, streams));
  MutexLock lock(mutex_);
  if (closed_ || shutdown_) return absl::UnavailableError("the engine has stopped");
  const auto waiting = unstarted_.find(stream);
  if (waiting != unstarted_.end() && waiting->second >= share) {
    const std::string part = streams > 1 ? absl::StrCat(", its part of ", waiting_max_) : "";
    return absl::ResourceExhaustedError(
        absl::StrCat("sequences waiting (", waiting->second, ") are at most ", share, part));
  }
  if (!live_.insert(key).second) {
    return absl::InvalidArgumentError(absl::StrCat("sequence_id (", submit.sequence_id(), ") is in use"));
  }
  submissions_.push_back({stream, submit, MonotonicNow()});
  ++unstarted_[stream];
  changed_.NotifyOne();
  return absl::OkStatus();
}

void Mailbox::Cancel(const SequenceKey& key) {
  MutexLock lock(mutex_);
  if (!live_.contains(key)) return;
  cancels_.insert(key);
  changed_.NotifyOne();
}

void Mailbox::CancelStream(uint64_t stream) {
  MutexLock lock(mutex_);
  const auto first = live_.lower_bound({stream, 0});
  if (first == live_.end() || first->first != stream) return;
  broken_streams_.insert(stream);
  changed_.NotifyOne();
}

void Mailbox::Shutdown() {
  MutexLock lock(mutex_);
  shutdown_ = true;
  changed_.NotifyOne();
}

Inbox Mailbox::Take(bool idle, absl::Duration idle_beat) {
  MutexLock lock(mutex_);
  const absl::Duration until = MonotonicNow() + idle_beat;
  while (idle && Empty()) {
    const absl::Duration left = until - MonotonicNow();
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitFor(mutex_, left);
  }
  Inbox inbox;
  int64_t tokens = 0;
  size_t taken = 0;
  for (; taken < submissions_.size() && tokens < kEntryTokensMax; ++taken) {
    tokens += TokensOf(submissions_[taken].submit);
  }
  const auto end = submissions_.begin() + static_cast<int64_t>(taken);
  inbox.submissions.assign(std::make_move_iterator(submissions_.begin()), std::make_move_iterator(end));
  submissions_.erase(submissions_.begin(), end);
  scheduler_waiting_ += static_cast<int32_t>(taken);
  inbox.shutdown = shutdown_;
  // A cancel must not overtake its submission.
  if (submissions_.empty()) {
    inbox.cancels.swap(cancels_);
    inbox.broken_streams.swap(broken_streams_);
  }
  return inbox;
}

void Mailbox::Forget(const SequenceKey& key) {
  MutexLock lock(mutex_);
  live_.erase(key);
  cancels_.erase(key);
}

void Mailbox::SetWaiting(int32_t waiting, const std::map<uint64_t, int32_t>& unstarted) {
  MutexLock lock(mutex_);
  scheduler_waiting_ = waiting;
  unstarted_ = unstarted;
  for (const Submission& submission : submissions_) ++unstarted_[submission.stream];
}

int32_t Mailbox::waiting() const {
  MutexLock lock(mutex_);
  return scheduler_waiting_ + static_cast<int32_t>(submissions_.size());
}

void Mailbox::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
}

bool Mailbox::Empty() const {
  return submissions_.empty() && cancels_.empty() && broken_streams_.empty() && !shutdown_;
}

}  // namespace quicksilver
