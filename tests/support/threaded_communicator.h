#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/mutex.h"
#include "kernels/cpu/host_matrix.h"
#include "worker/collectives/communicator.h"

namespace quicksilver {

/// A group whose ranks are threads of one process: real arithmetic, in rank order, without sockets. Ranks meet twice in
/// every operation; a rank that does not come for a minute, or aborts, fails the operation on all. Host memory only.
class ThreadedGroup {
 public:
  explicit ThreadedGroup(int size) : inputs_(size), size_(size) {}

  /// The communicator of `rank`, for one thread. The group outlives it.
  std::unique_ptr<Communicator> Join(int rank) { return std::make_unique<Member>(*this, rank); }

 private:
  class Member final : public Communicator {
   public:
    Member(ThreadedGroup& group, int rank) : group_(group), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return group_.size_; }
    absl::Status Synchronize() override { return group_.Failure(); }
    void Abort() override { group_.Fail("aborted"); }

    void AllReduceSum(Matrix x) override {
      CHECK(x.rows <= 1 || x.stride == x.cols);
      group_.inputs_[rank_] = x.data;
      if (!group_.Meet()) return;
      std::vector<float> sums(x.rows * x.cols, 0.0f);
      for (const void* input : group_.inputs_) {
        const ConstMatrix other(input, x.rows, x.cols, x.cols, x.dtype);
        for (int64_t i = 0; i < x.rows * x.cols; ++i) sums[i] += Load(other, i / x.cols, i % x.cols);
      }
      if (!group_.Meet()) return;
      for (int64_t i = 0; i < x.rows * x.cols; ++i) Store(x, i / x.cols, i % x.cols, sums[i]);
    }

    void AllGather(const void* in, void* out, size_t bytes) override {
      group_.inputs_[rank_] = in;
      if (!group_.Meet()) return;
      std::vector<char> gathered;
      for (const void* input : group_.inputs_) {
        gathered.insert(gathered.end(), static_cast<const char*>(input), static_cast<const char*>(input) + bytes);
      }
      if (!group_.Meet()) return;
      std::copy(gathered.begin(), gathered.end(), static_cast<char*>(out));
    }

   private:
    ThreadedGroup& group_;
    const int rank_;
  };

  /// Returns when all ranks have called it; false when the group has failed.
  bool Meet() EXCLUDES_LOCK(mutex_) {
    MutexLock lock(mutex_);
    const uint64_t meeting = meetings_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++meetings_;
      changed_.NotifyAll();
    }
    while (meetings_ == meeting && failure_.ok()) {
      if (!changed_.WaitFor(mutex_, absl::Minutes(1)) && meetings_ == meeting) {
        failure_ = absl::UnavailableError("collectives: a rank did not come within a minute");
        changed_.NotifyAll();
      }
    }
    return failure_.ok();
  }

  void Fail(const std::string& why) EXCLUDES_LOCK(mutex_) {
    MutexLock lock(mutex_);
    failure_ = absl::UnavailableError("collectives: " + why);
    changed_.NotifyAll();
  }

  absl::Status Failure() EXCLUDES_LOCK(mutex_) {
    MutexLock lock(mutex_);
    return failure_;
  }

  std::vector<const void*> inputs_;  // By rank; written before a meeting, read until the next.
  const int size_;
  Mutex mutex_;
  CondVar changed_;
  int arrived_ GUARDED_BY(mutex_) = 0;
  uint64_t meetings_ GUARDED_BY(mutex_) = 0;
  absl::Status failure_ GUARDED_BY(mutex_);
};

}  // namespace quicksilver
