#include "coordinator/service/task_pool.h"

#include <utility>

namespace quicksilver {

TaskPool::TaskPool(int threads, size_t tasks_max, size_t bytes_max) : tasks_max_(tasks_max), bytes_max_(bytes_max) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

TaskPool::~TaskPool() { Stop(); }

void TaskPool::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool TaskPool::Add(Task task, size_t bytes) {
  MutexLock lock(mu_);
  // One task of any size may always wait.
  if (waiting_.size() >= tasks_max_ || (!waiting_.empty() && bytes_ + bytes > bytes_max_)) return false;
  bytes_ += bytes;
  waiting_.push_back({std::move(task), bytes});
  wake_.NotifyOne();
  return true;
}

void TaskPool::AddUrgent(Task task) {
  MutexLock lock(mu_);
  urgent_.push_back(std::move(task));
  wake_.NotifyOne();
}

void TaskPool::Work() {
  for (;;) {
    Task task;
    {
      MutexLock lock(mu_);
      while (urgent_.empty() && waiting_.empty() && !stopping_) wake_.Wait(mu_);
      if (!urgent_.empty()) {
        task = std::move(urgent_.front());
        urgent_.pop_front();
      } else if (!waiting_.empty()) {
        task = std::move(waiting_.front().task);
        bytes_ -= waiting_.front().bytes;
        waiting_.pop_front();
      } else {
        return;
      }
    }
    task();
  }
}

}  // namespace quicksilver
