#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

// std::mutex with clang's thread-safety annotations (checked by the syntax-only clang pass of tools/test).
// absl::Mutex is not used: Debian builds it with deadlock aborts on, slow, and opaque to TSan.
#if defined(__clang__)
#define QS_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define QS_THREAD_ANNOTATION(x)
#endif

// absl/base/thread_annotations.h may have come in with an absl header; ours have the same meaning.
#undef GUARDED_BY
#undef EXCLUSIVE_LOCKS_REQUIRED
#define GUARDED_BY(x) QS_THREAD_ANNOTATION(guarded_by(x))
#define PT_GUARDED_BY_MUTEX(x) QS_THREAD_ANNOTATION(pt_guarded_by(x))
#define REQUIRES_LOCK(...) QS_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define EXCLUDES_LOCK(...) QS_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))

namespace quicksilver {

class QS_THREAD_ANNOTATION(capability("mutex")) Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() QS_THREAD_ANNOTATION(acquire_capability()) { mutex_.lock(); }
  void Unlock() QS_THREAD_ANNOTATION(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class QS_THREAD_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) QS_THREAD_ANNOTATION(acquire_capability(mutex)) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() QS_THREAD_ANNOTATION(release_capability()) { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

/// Waits are always in a loop over the guarded condition; both release `mutex` while they wait.
class CondVar {
 public:
  void Wait(Mutex& mutex) REQUIRES_LOCK(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  /// Returns false when `timeout` passed first.
  bool WaitFor(Mutex& mutex, absl::Duration timeout) REQUIRES_LOCK(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool woken = condition_.wait_for(lock, absl::ToChronoNanoseconds(timeout)) == std::cv_status::no_timeout;
    lock.release();
    return woken;
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace quicksilver
