#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "common/mutex.h"

namespace quicksilver {

/// A few threads for work that may take milliseconds, behind a bounded queue. Thread-safe.
class TaskPool {
 public:
  using Task = std::function<void()>;

  /// `bytes_max` bounds the sum of what the callers say that their waiting tasks hold.
  TaskPool(int threads, size_t tasks_max, size_t bytes_max);
  /// Stops.
  ~TaskPool();
  /// Runs what waits, and what that adds, then ends the threads.
  void Stop();

  /// False when the queue is full.
  bool Add(Task task, size_t bytes);
  /// For short tasks that must not be refused, such as telling of a refusal: goes first. The caller bounds their
  /// number.
  void AddUrgent(Task task);

 private:
  struct Waiting {
    Task task;
    size_t bytes;
  };
  void Work();

  const size_t tasks_max_;
  const size_t bytes_max_;
  Mutex mu_;
  CondVar wake_;
  std::deque<Waiting> waiting_ GUARDED_BY(mu_);
  std::deque<Task> urgent_ GUARDED_BY(mu_);
  size_t bytes_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace quicksilver
