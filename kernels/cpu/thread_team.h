#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace quicksilver {

/// Multiplications that keep one core busy for some ten microseconds; sharing less does not pay.
inline constexpr int64_t kSharedWorkMin = 1 << 20;

/// Threads that work through a list of items together. A waiting thread spins for some hundred microseconds (an
/// operation follows the other closely within a step) and then sleeps. With one thread there is nothing to wait for.
class ThreadTeam {
 public:
  explicit ThreadTeam(int32_t threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int32_t threads() const { return static_cast<int32_t>(workers_.size()) + 1; }

  /// Calls body(item, thread) for every item in [0, items), thread in [0, threads()); returns when all are done. The
  /// caller is thread 0, and the only one unless `worth_sharing`. Not to be called by two threads at once, nor from a
  /// body.
  using Body = absl::FunctionRef<void(int64_t item, int32_t thread)>;
  void Run(int64_t items, bool worth_sharing, Body body);

 private:
  void Worker(int32_t thread);
  void TakeItems(int32_t thread);

  const Body* body_ = nullptr;  // Written before generation_ moves on, read after.
  int64_t items_ = 0;
  std::atomic<int64_t> next_item_{0};
  std::atomic<int32_t> working_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace quicksilver
