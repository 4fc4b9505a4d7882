#include "common/http/exchange.h"

#include <utility>

namespace quicksilver::http {

Exchange::Exchange(std::function<void()> notify, std::atomic<int64_t>& buffered_total)
    : buffered_total_(buffered_total), notify_(std::move(notify)) {}

void Exchange::OnEnd(std::function<void(EndReason)> callback) {
  MutexLock lock(mutex_);
  on_end_ = std::move(callback);
}

void Exchange::OnWritable(std::function<void()> callback) {
  MutexLock lock(mutex_);
  on_writable_ = std::move(callback);
}

void Exchange::OnDrained(std::function<void()> callback) {
  MutexLock lock(mutex_);
  on_drained_ = std::move(callback);
}

void Exchange::Notify() {
  if (notified_ || !notify_) return;
  notified_ = true;
  notify_();
}

void Exchange::AddUnsent(int64_t bytes) {
  unsent_ += static_cast<size_t>(bytes);
  buffered_total_ += bytes;
}

void Exchange::Reply(Response response) {
  MutexLock lock(mutex_);
  if (over_ || answered_) return;
  answered_ = true;
  work_.reply = true;
  work_.head = std::move(response);
  Notify();
}

void Exchange::StartStream(Response head, StreamOptions options) {
  MutexLock lock(mutex_);
  if (over_ || answered_) return;
  answered_ = true;
  budget_ = options.budget_bytes;
  work_.start_stream = true;
  work_.data = std::move(head.body);
  AddUnsent(static_cast<int64_t>(work_.data.size()));
  work_.head = std::move(head);
  work_.options = std::move(options);
  Notify();
}

bool Exchange::Write(std::string_view data) {
  MutexLock lock(mutex_);
  if (over_) return true;
  if (unsent_ >= budget_) {
    refused_write_ = true;
    return false;
  }
  work_.data += data;
  AddUnsent(static_cast<int64_t>(data.size()));
  Notify();
  return true;
}

void Exchange::AskDrained() {
  MutexLock lock(mutex_);
  if (over_) return;
  drained_asked_ = true;
  Notify();
}

void Exchange::Drained() {
  std::function<void()> callback;
  {
    MutexLock lock(mutex_);
    drained_asked_ = false;
    callback = on_drained_;
  }
  if (callback) callback();
}

void Exchange::Finish() {
  MutexLock lock(mutex_);
  if (over_) return;
  work_.finish = true;
  Notify();
}

void Exchange::Reset() {
  MutexLock lock(mutex_);
  if (over_) return;
  work_.reset = true;
  Notify();
}

void Exchange::Post(std::function<void()> task) {
  MutexLock lock(mutex_);
  if (over_) return;
  work_.tasks.push_back(std::move(task));
  Notify();
}

size_t Exchange::buffered_bytes() const {
  MutexLock lock(mutex_);
  return unsent_;
}

Exchange::Work Exchange::Take() {
  MutexLock lock(mutex_);
  notified_ = false;
  Work work = std::exchange(work_, {});
  work.drained_asked = drained_asked_;
  return work;
}

void Exchange::Sent(size_t bytes) {
  std::function<void()> writable;
  {
    MutexLock lock(mutex_);
    AddUnsent(-static_cast<int64_t>(bytes));
    if (refused_write_ && unsent_ <= budget_ / 2) {
      refused_write_ = false;
      writable = on_writable_;
    }
  }
  if (writable) writable();
}

void Exchange::End(EndReason reason) {
  std::function<void(EndReason)> on_end;
  std::function<void()> on_writable, on_drained, notify;
  std::vector<std::function<void()>> tasks;
  {
    MutexLock lock(mutex_);
    if (over_) return;
    over_ = true;
    on_end = std::move(on_end_);
    on_end_ = nullptr;
    on_writable.swap(on_writable_);
    on_drained.swap(on_drained_);
    notify.swap(notify_);
    tasks.swap(work_.tasks);
    work_ = {};
    AddUnsent(-static_cast<int64_t>(unsent_));
  }
  if (on_end) on_end(reason);
}

}  // namespace quicksilver::http
