#include "worker/collectives/timed_communicator.h"

#include <utility>

#include "common/clock.h"

namespace quicksilver {
namespace {

class TimedCommunicator final : public Communicator {
 public:
  TimedCommunicator(std::unique_ptr<Communicator> inner,
                    std::function<void(CollectiveOperation, absl::Duration)> observe)
      : inner_(std::move(inner)), observe_(std::move(observe)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  bool deterministic() const override { return inner_->deterministic(); }
  bool repeats() const override { return inner_->repeats(); }

  void AllReduceSum(Matrix x) override {
    const absl::Duration start = MonotonicNow();
    inner_->AllReduceSum(x);
    observe_(CollectiveOperation::kAllReduce, MonotonicNow() - start);
  }

  void AllGather(const void* in, void* out, size_t bytes) override {
    const absl::Duration start = MonotonicNow();
    inner_->AllGather(in, out, bytes);
    observe_(CollectiveOperation::kAllGather, MonotonicNow() - start);
  }

  absl::Status Synchronize() override { return inner_->Synchronize(); }
  absl::Status status() override { return inner_->status(); }
  void Abort() override { inner_->Abort(); }
  void BeforeAbort(std::function<void()> release) override { inner_->BeforeAbort(std::move(release)); }

 private:
  const std::unique_ptr<Communicator> inner_;
  const std::function<void(CollectiveOperation, absl::Duration)> observe_;
};

}  // namespace

std::unique_ptr<Communicator> MakeTimedCommunicator(std::unique_ptr<Communicator> inner,
                                                    std::function<void(CollectiveOperation, absl::Duration)> observe) {
  return std::make_unique<TimedCommunicator>(std::move(inner), std::move(observe));
}

}  // namespace quicksilver
