#include "worker/collectives/cuda/nccl_communicator.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/cuda_error.h"
#include "worker/collectives/cuda/exit_watchdog.h"
#include "worker/collectives/cuda/nccl_library.h"
#include "worker/collectives/cuda/stream_wait.h"

namespace quicksilver {
namespace {

constexpr int kLeader = 0;
constexpr absl::Duration kInitNap = absl::Milliseconds(1);
constexpr absl::Duration kDrainNap = absl::Microseconds(200);

// NCCL's rule: a communicator may be aborted only while no other thread is inside a call on it. So each call, and each
// is short since the communicator does not block, holds calls_.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclOptions& options, cudaStream_t stream, std::unique_ptr<NcclLibrary> library)
      : options_(options), stream_(stream), nccl_(std::move(library)) {}

  ~NcclCommunicator() override {
    AbortFor("the end of the communicator");
    cudaFree(pieces_);
  }

  absl::Status Form(const ncclUniqueId& id) {
    ASSIGN_OR_RETURN(wait_, StreamWait::Create(stream_));
    if (options_.rank_order) {
      const size_t bytes = options_.piece_bytes * static_cast<size_t>(size());
      RETURN_IF_ERROR(CudaStatus(cudaMalloc(&pieces_, bytes), "cudaMalloc"));
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t result;
    {
      MutexLock lock(calls_);
      result = nccl_->comm_init_rank_config(&comm_, size(), id, rank(), &config);
    }
    absl::Status formed = Finish(result, "ncclCommInitRankConfig", options_.init_timeout, kInitNap);
    if (!formed.ok()) {
      AbortFor(formed.message());
      return formed;
    }
    LogInfo("NCCL communicator ready", {{"rank", rank()},
                                        {"ranks", size()},
                                        {"library", nccl_->path()},
                                        {"version", nccl_->version_text()},
                                        {"rank_order", options_.rank_order}});
    return absl::OkStatus();
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  bool deterministic() const override { return options_.rank_order; }
  // NCCL may record host functions and hang objects on the graph; the body of a loop takes neither.
  bool repeats() const override { return false; }

  void AllReduceSum(Matrix x) override {
    CHECK(x.stride == x.cols || x.rows <= 1);
    const int64_t elements = x.rows * x.cols;
    if (!Usable() || elements == 0) return;
    if (options_.rank_order) {
      ReduceInRankOrder(static_cast<std::byte*>(x.data), elements, x.dtype);
    } else {
      Enqueue("ncclAllReduce", [&](ncclComm_t comm) {
        return nccl_->all_reduce(x.data, x.data, static_cast<size_t>(elements),
                                 x.dtype == DType::kF32 ? ncclFloat32 : ncclBfloat16, ncclSum, comm, stream_);
      });
    }
  }

  void AllGather(const void* in, void* out, size_t bytes) override {
    if (!Usable() || bytes == 0) return;
    Enqueue("ncclAllGather",
            [&](ncclComm_t comm) { return nccl_->all_gather(in, out, bytes, ncclInt8, comm, stream_); });
  }

  absl::Status Synchronize() override {
    if (!Usable()) return status_;
    absl::Status done = wait_->Wait(options_.step_timeout, [this] { return AsyncError(); });
    if (done.ok()) done = AsyncError();  // An operation that NCCL gave up ends, too.
    if (absl::IsDeadlineExceeded(done)) done = Lost(done.message());
    if (!done.ok()) Fail(std::move(done));
    return Usable() ? absl::OkStatus() : status_;
  }

  absl::Status status() override {
    if (!Usable()) return status_;
    if (absl::Status now = AsyncError(); !now.ok()) Fail(std::move(now));
    return status_;
  }

  void Abort() override { AbortFor("aborted"); }

  void BeforeAbort(std::function<void()> release) override {
    MutexLock lock(calls_);
    release_ = std::move(release);
  }

 private:
  void ReduceInRankOrder(std::byte* x, int64_t elements, DType dtype) {
    const size_t element_bytes = ElementBytes(dtype);
    const auto piece = static_cast<int64_t>(options_.piece_bytes / element_bytes);
    for (int64_t first = 0; first < elements && Usable(); first += piece) {
      const int64_t count = std::min(piece, elements - first);
      std::byte* at = x + static_cast<size_t>(first) * element_bytes;
      AllGather(at, pieces_, static_cast<size_t>(count) * element_bytes);
      if (!Usable()) return;
      const cudaError_t error = LaunchRankOrderSum(pieces_, size(), count, dtype, at, stream_);
      if (error != cudaSuccess) Fail(CudaStatus(error, "collectives: sum in rank order"));
    }
  }

  template <typename Call>
  void Enqueue(const char* name, const Call& call) {
    ncclResult_t result;
    {
      MutexLock lock(calls_);
      if (comm_ == nullptr) return;
      result = call(comm_);
    }
    if (absl::Status status = Finish(result, name, options_.step_timeout, absl::ZeroDuration()); !status.ok()) {
      Fail(std::move(status));
    }
  }

  // Nothing may be enqueued on the stream before a call that has returned ncclInProgress is through.
  absl::Status Finish(ncclResult_t result, const char* name, absl::Duration timeout, absl::Duration nap) {
    const absl::Duration start = MonotonicNow();
    while (result == ncclInProgress) {
      if (MonotonicNow() - start > timeout) {
        return Lost(absl::StrCat(name, " has not finished within ", absl::FormatDuration(timeout)));
      }
      if (nap > absl::ZeroDuration()) {
        absl::SleepFor(nap);
      } else {
        sched_yield();
      }
      MutexLock lock(calls_);
      if (comm_ == nullptr) return Lost("aborted");
      if (const ncclResult_t asked = nccl_->comm_get_async_error(comm_, &result); asked != ncclSuccess) result = asked;
    }
    return Named(result, name);
  }

  absl::Status AsyncError() {
    MutexLock lock(calls_);
    if (comm_ == nullptr) return Lost("aborted");
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = nccl_->comm_get_async_error(comm_, &state);
    if (asked != ncclSuccess) return Named(asked, "ncclCommGetAsyncError");
    return state == ncclInProgress ? absl::OkStatus() : Named(state, "collectives");
  }

  absl::Status Named(ncclResult_t result, const char* name) {
    const absl::Status status = nccl_->ToStatus(result, name);
    return status.ok() ? status : Lost(status.message());
  }

  absl::Status Lost(absl::string_view why) const {
    return absl::UnavailableError(absl::StrCat("collectives: rank ", rank(), " lost its group: ", why));
  }

  bool Usable() {
    if (status_.ok() && aborted_.load()) status_ = Lost("aborted");
    return status_.ok();
  }

  void Fail(absl::Status status) {
    if (!status_.ok()) return;
    status_ = std::move(status);
    AbortFor(status_.message());
  }

  // Whatever hangs in here, NCCL, the driver or a thread inside a call, the watchdog ends the process.
  void AbortFor(absl::string_view why) {
    if (aborted_.exchange(true)) return;
    watchdog_.Arm(options_.abort_budget, absl::StrCat("abort of NCCL (", why, ")"));
    MutexLock lock(calls_);
    if (release_ != nullptr) {
      StopInFlight();
      release_();
    }
    // May say ncclInProgress: the rest is done by a thread of NCCL, and the communicator is not ours any more.
    if (comm_ != nullptr) nccl_->comm_abort(std::exchange(comm_, nullptr));
    while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
      cudaGetLastError();
      absl::SleepFor(kDrainNap);
    }
    watchdog_.Disarm();
  }

  // A recorded Program that is under way is destroyed when its kernels have ended, so they are ended first, where NCCL
  // can do that.
  void StopInFlight() REQUIRES_LOCK(calls_) {
    if (comm_ == nullptr || nccl_->comm_revoke == nullptr) return;
    const absl::Duration start = MonotonicNow();
    ncclResult_t state = nccl_->comm_revoke(comm_, NCCL_REVOKE_DEFAULT);
    while (state == ncclInProgress && MonotonicNow() - start < options_.abort_budget / 4) {
      absl::SleepFor(kDrainNap);
      if (nccl_->comm_get_async_error(comm_, &state) != ncclSuccess) return;
    }
  }

  const NcclOptions options_;
  const cudaStream_t stream_;
  const std::unique_ptr<NcclLibrary> nccl_;
  std::unique_ptr<StreamWait> wait_;
  void* pieces_ = nullptr;  // [tp, piece_bytes] on the device.
  std::atomic<bool> aborted_ = false;
  absl::Status status_;  // Of the owner's thread.
  ExitWatchdog watchdog_;
  Mutex calls_;
  ncclComm_t comm_ GUARDED_BY(calls_) = nullptr;
  std::function<void()> release_ GUARDED_BY(calls_);
};

// The leader's id, or why it has none: the others are not to wait for it.
absl::StatusOr<ncclUniqueId> ShareUniqueId(const NcclOptions& options, const NcclLibrary& nccl,
                                           ControlChannel& control) {
  constexpr char kId = 'i', kFailed = 'f';
  std::string message;
  if (options.rank == kLeader) {
    ncclUniqueId id;
    const absl::Status made = nccl.ToStatus(nccl.get_unique_id(&id), "ncclGetUniqueId");
    message = made.ok() ? kId + std::string(id.internal, sizeof(id.internal)) : kFailed + std::string(made.message());
  }
  ASSIGN_OR_RETURN(message, control.Broadcast(std::move(message), options.init_timeout));
  if (!message.empty() && message[0] == kFailed) {
    return absl::UnavailableError(absl::StrCat("collectives: the leader has no NCCL id: ", message.substr(1)));
  }
  ncclUniqueId id;
  if (message.size() != 1 + sizeof(id.internal) || message[0] != kId) {
    return absl::InternalError(absl::StrCat("collectives: the leader sent ", message.size(),
                                            " bytes where an NCCL id has ", 1 + sizeof(id.internal)));
  }
  std::memcpy(id.internal, message.data() + 1, sizeof(id.internal));
  return id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclOptions& options, cudaStream_t stream,
                                                                   ControlChannel& control) {
  CHECK(options.rank >= 0 && options.rank < options.size);
  ASSIGN_OR_RETURN(std::unique_ptr<NcclLibrary> library, NcclLibrary::Load(options.library));
  ASSIGN_OR_RETURN(const ncclUniqueId id, ShareUniqueId(options, *library, control));
  auto communicator = std::make_unique<NcclCommunicator>(options, stream, std::move(library));
  RETURN_IF_ERROR(communicator->Form(id));
  return communicator;
}

}  // namespace quicksilver
