#include "worker/collectives/cuda/ipc_communicator.h"

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/cuda_error.h"
#include "worker/collectives/cuda/stream_wait.h"

namespace quicksilver {
namespace {

// One shot writes (tp - 1) M bytes a rank in one exchange, two shots 2 (tp - 1) / tp M in two. Between NVLink's latency
// and its bandwidth the break-even lies at some hundred KiB; not measured on this project's machines.
size_t TwoShotBytesMin(int ranks) {
  if (ranks <= 2) return kExchangeBytesMax + 1;  // As many bytes, one exchange more.
  return ranks <= 4 ? 512 << 10 : 256 << 10;
}

// How long the device may take to notice an abort.
constexpr absl::Duration kAbortTime = absl::Seconds(1);

// What a rank tells its peers about its region.
struct Offer {
  uint64_t process = 0;  ///< A handle cannot be opened by the process that made it.
  uint64_t address = 0;  ///< In that process.
  int32_t device = 0;    ///< In that process.
  cudaIpcMemHandle_t handle = {};
};

// Process numbers alone repeat between containers.
uint64_t ThisProcess() {
  static const uint64_t number =
      static_cast<uint64_t>(getpid()) << 40 ^ static_cast<uint64_t>(absl::ToInt64Nanoseconds(MonotonicNow()));
  return number;
}

std::vector<std::string> Keys(const char* what, int ranks) {
  std::vector<std::string> keys;
  for (int rank = 0; rank < ranks; ++rank) keys.push_back(absl::StrCat("ipc/", what, "/", rank));
  return keys;
}

class IpcCommunicator final : public Communicator {
 public:
  IpcCommunicator(const IpcOptions& options, cudaStream_t stream)
      : options_(options),
        two_shot_bytes_min_(options.two_shot_bytes_min.value_or(TwoShotBytesMin(options.size))),
        stream_(stream) {
    group_.rank = options.rank;
    group_.ranks = options.size;
    group_.timeout_nanoseconds = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.timeout));
  }

  ~IpcCommunicator() override {
    Abort();
    // Memory that a kernel still uses is left alone: to free it would wait for that kernel.
    if (wait_ == nullptr || !wait_->Wait(kAbortTime, [] { return absl::OkStatus(); }).ok()) return;
    for (void* opened : opened_) cudaIpcCloseMemHandle(opened);
    cudaFree(region_);
    cudaFreeHost(report_);
  }

  absl::Status Form(RendezvousStore& store, absl::Duration timeout) {
    ASSIGN_OR_RETURN(wait_, StreamWait::Create(stream_));
    if (size() == 1) return absl::OkStatus();
    RETURN_IF_ERROR(Allocate());
    Offer offer;
    offer.process = ThisProcess();
    offer.address = reinterpret_cast<uint64_t>(region_);
    offer.device = device_;
    RETURN_IF_ERROR(CudaStatus(cudaIpcGetMemHandle(&offer.handle, region_), "cudaIpcGetMemHandle"));
    RETURN_IF_ERROR(
        store.Put(Keys("region", size())[rank()], std::string(reinterpret_cast<const char*>(&offer), sizeof(offer))));
    ASSIGN_OR_RETURN(const std::vector<std::string> offers, store.Get(Keys("region", size()), timeout));
    for (int peer = 0; peer < size(); ++peer) RETURN_IF_ERROR(Open(peer, offers[peer]));
    // Nobody writes before everybody's region stands open.
    RETURN_IF_ERROR(store.Put(Keys("open", size())[rank()], "1"));
    return store.Get(Keys("open", size()), timeout).status();
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  void AllReduceSum(Matrix x) override {
    CHECK(x.stride == x.cols || x.rows <= 1);
    const int64_t elements = x.rows * x.cols;
    const size_t bytes = static_cast<size_t>(elements) * ElementBytes(x.dtype);
    CHECK(bytes <= kExchangeBytesMax);
    if (!Usable() || elements == 0 || size() == 1) return;
    Note(LaunchAllReduce(group_, x.data, elements, x.dtype, bytes >= two_shot_bytes_min_, stream_), "all-reduce");
  }

  void AllGather(const void* in, void* out, size_t bytes) override {
    CHECK(bytes <= kExchangeBytesMax);
    if (!Usable() || bytes == 0) return;
    if (size() > 1) {
      Note(LaunchAllGather(group_, in, out, bytes, stream_), "all-gather");
    } else if (in != out) {
      Note(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, stream_), "all-gather");
    }
  }

  absl::Status Synchronize() override {
    if (!Usable()) return status_;
    const absl::Status waited = wait_->Wait(options_.step_timeout, [] { return absl::OkStatus(); });
    status_ = Failure();  // Tells more than a deadline, and than "aborted" does.
    if (status_.ok() && !waited.ok()) {
      Abort();
      status_ = absl::IsDeadlineExceeded(waited) ? Lost(waited.message()) : waited;
    }
    return status_;
  }

  // The kernels write down a failure before anything behind them in the stream can tell the host of results.
  absl::Status status() override {
    if (Usable()) status_ = Failure();
    return status_;
  }

  void Abort() override {
    aborted_.store(true);
    if (report_ != nullptr) std::atomic_ref<uint32_t>(report_->abort).store(1);
  }

 private:
  absl::Status Allocate() {
    RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device_), "cudaGetDevice"));
    RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(reinterpret_cast<void**>(&report_), sizeof(ExchangeReport),
                                             cudaHostAllocMapped | cudaHostAllocPortable),
                               "cudaHostAlloc"));
    *report_ = ExchangeReport();
    RETURN_IF_ERROR(CudaStatus(cudaHostGetDevicePointer(reinterpret_cast<void**>(&group_.report), report_, 0),
                               "cudaHostGetDevicePointer"));
    RETURN_IF_ERROR(CudaStatus(cudaMalloc(&region_, sizeof(ExchangeRegion)), "cudaMalloc"));
    // The slots need no zeros.
    RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(region_, 0, offsetof(ExchangeRegion, slots), stream_), "cudaMemsetAsync"));
    return wait_->Wait(options_.step_timeout, [] { return absl::OkStatus(); });
  }

  absl::Status Open(int peer, const std::string& bytes) {
    Offer offer;
    if (bytes.size() != sizeof(offer)) {
      return absl::InternalError(absl::StrCat("collectives: rank ", peer, " offers ", bytes.size(), " bytes where ",
                                              sizeof(offer), " were expected"));
    }
    std::memcpy(&offer, bytes.data(), sizeof(offer));
    void* region = region_;
    if (offer.process != ThisProcess()) {
      RETURN_IF_ERROR(CudaStatus(cudaIpcOpenMemHandle(&region, offer.handle, cudaIpcMemLazyEnablePeerAccess),
                                 absl::StrCat("cudaIpcOpenMemHandle of rank ", peer)));
      opened_.push_back(region);
    } else if (peer != rank()) {
      region = reinterpret_cast<void*>(offer.address);
      if (offer.device != device_) RETURN_IF_ERROR(EnablePeerAccess(offer.device));
    }
    group_.regions[peer] = static_cast<ExchangeRegion*>(region);
    return absl::OkStatus();
  }

  static absl::Status EnablePeerAccess(int device) {
    const cudaError_t error = cudaDeviceEnablePeerAccess(device, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
      cudaGetLastError();
      return absl::OkStatus();
    }
    return CudaStatus(error, "cudaDeviceEnablePeerAccess");
  }

  bool Usable() {
    if (status_.ok() && aborted_.load()) status_ = Lost("aborted");
    return status_.ok();
  }

  void Note(cudaError_t error, const char* operation) {
    if (error != cudaSuccess) status_ = CudaStatus(error, absl::StrCat("collectives: ", operation));
  }

  absl::Status Lost(absl::string_view why) const {
    return absl::UnavailableError(absl::StrCat("collectives: rank ", rank(), " lost its group: ", why));
  }

  // What the kernels have reported.
  absl::Status Failure() {
    if (report_ == nullptr) return aborted_.load() ? Lost("aborted") : absl::OkStatus();
    const auto failure = static_cast<ExchangeFailure>(std::atomic_ref<uint32_t>(report_->failure).load());
    const auto peer = report_->peer;
    switch (failure) {
      case ExchangeFailure::kNone:
        return aborted_.load() ? Lost("aborted") : absl::OkStatus();
      case ExchangeFailure::kAborted:
        return Lost("aborted");
      case ExchangeFailure::kSilent:
        return absl::UnavailableError(absl::StrCat("collectives: rank ", rank(), " lost rank ", peer, ": silent for ",
                                                   absl::FormatDuration(options_.timeout)));
      case ExchangeFailure::kDiverged:
        return absl::InternalError(absl::StrCat("collectives: rank ", peer, " runs ", Describe(report_->found),
                                                " where rank ", rank(), " runs ", Describe(report_->expected),
                                                ": the ranks have diverged"));
    }
    return absl::InternalError(absl::StrCat("collectives: failure ", static_cast<uint32_t>(failure)));
  }

  static std::string Describe(uint32_t signature) {
    return absl::StrCat(IsGather(signature) ? "an all-gather of " : "an all-reduce of ", SignatureBytes(signature),
                        " bytes");
  }

  const IpcOptions options_;
  const size_t two_shot_bytes_min_;
  const cudaStream_t stream_;
  int device_ = 0;
  std::unique_ptr<StreamWait> wait_;
  void* region_ = nullptr;            // An ExchangeRegion on the device.
  ExchangeReport* report_ = nullptr;  // As the host sees it.
  std::vector<void*> opened_;
  Exchange group_;
  std::atomic<bool> aborted_ = false;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeIpcCommunicator(const IpcOptions& options, cudaStream_t stream,
                                                                  RendezvousStore& store,
                                                                  absl::Duration formation_timeout) {
  CHECK(options.rank >= 0 && options.rank < options.size);
  if (options.size > kExchangeRanksMax) {
    return absl::FailedPreconditionError(absl::StrCat(
        "collectives: ", options.size, " ranks over device memory, at most ", kExchangeRanksMax, " are possible"));
  }
  auto communicator = std::make_unique<IpcCommunicator>(options, stream);
  RETURN_IF_ERROR(communicator->Form(store, formation_timeout));
  return communicator;
}

}  // namespace quicksilver
