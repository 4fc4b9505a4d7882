#include "worker/collectives/cuda/stream_wait.h"

#include <sched.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace quicksilver {
namespace {

// Most steps take longer, and a sleeping core takes tens of microseconds to wake: the last part of a wait costs that.
constexpr absl::Duration kSpinTime = absl::Milliseconds(1);
constexpr absl::Duration kNap = absl::Microseconds(20);

}  // namespace

absl::StatusOr<std::unique_ptr<StreamWait>> StreamWait::Create(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags"));
  return std::unique_ptr<StreamWait>(new StreamWait(stream, event));
}

StreamWait::~StreamWait() { cudaEventDestroy(event_); }

absl::Status StreamWait::Wait(absl::Duration timeout, const std::function<absl::Status()>& check) {
  const absl::Duration start = MonotonicNow();
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(event_, stream_), "cudaEventRecord"));
  while (true) {
    const cudaError_t state = cudaEventQuery(event_);
    if (state != cudaErrorNotReady) return CudaStatus(state, "cudaEventQuery");
    cudaGetLastError();  // "Not ready" is no error to remember.
    RETURN_IF_ERROR(check());
    const absl::Duration waited = MonotonicNow() - start;
    if (waited > timeout) {
      return absl::DeadlineExceededError(
          absl::StrCat("the device has not finished its work within ", absl::FormatDuration(timeout)));
    }
    if (waited < kSpinTime) {
      sched_yield();
    } else {
      absl::SleepFor(kNap);
    }
  }
}

}  // namespace quicksilver
