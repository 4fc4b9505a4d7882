#include "kernels/cpu/thread_team.h"

#include "common/check.h"

namespace quicksilver {
namespace {

/// Some hundred microseconds. Much less than the gaps between operations plus a wake-up, and the two sides put each
/// other to sleep in turn.
constexpr int kSpins = 2000;

/// Returns when `value` is no longer `old`.
template <typename T>
void AwaitChange(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    __builtin_ia32_pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadTeam::ThreadTeam(int32_t threads) {
  CHECK(threads >= 1);
  for (int32_t thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { Worker(thread); });
}

ThreadTeam::~ThreadTeam() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::Run(int64_t items, bool worth_sharing, Body body) {
  if (workers_.empty() || items <= 1 || !worth_sharing) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  body_ = &body;
  items_ = items;
  next_item_.store(0, std::memory_order_relaxed);
  working_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  TakeItems(0);
  for (int32_t working = working_.load(std::memory_order_acquire); working != 0;
       working = working_.load(std::memory_order_acquire)) {
    AwaitChange(working_, working);
  }
}

void ThreadTeam::Worker(int32_t thread) {
  for (uint32_t seen = 0;; ++seen) {
    AwaitChange(generation_, seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    TakeItems(thread);
    working_.fetch_sub(1, std::memory_order_acq_rel);
    working_.notify_one();
  }
}

void ThreadTeam::TakeItems(int32_t thread) {
  for (int64_t item = next_item_.fetch_add(1, std::memory_order_relaxed); item < items_;
       item = next_item_.fetch_add(1, std::memory_order_relaxed)) {
    (*body_)(item, thread);
  }
}

}  // namespace quicksilver
