#include "worker/collectives/local_communicator.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace quicksilver {
namespace {

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void AllReduceSum(Matrix x) override { CHECK(x.stride == x.cols || x.rows <= 1); }

  void AllGather(const void* in, void* out, size_t bytes) override {
    if (in != out && bytes > 0) std::memcpy(out, in, bytes);
  }

  absl::Status Synchronize() override {
    if (aborted_.load()) return absl::UnavailableError("collectives: aborted");
    return absl::OkStatus();
  }

  void Abort() override { aborted_.store(true); }

 private:
  std::atomic<bool> aborted_ = false;
};

class LocalControlChannel final : public ControlChannel {
 public:
  absl::StatusOr<std::string> Broadcast(std::string message, absl::Duration) override { return message; }
  absl::Status Barrier(absl::Duration) override { return absl::OkStatus(); }
};

}  // namespace

std::unique_ptr<Communicator> MakeLocalCommunicator() { return std::make_unique<LocalCommunicator>(); }
std::unique_ptr<ControlChannel> MakeLocalControlChannel() { return std::make_unique<LocalControlChannel>(); }

}  // namespace quicksilver
