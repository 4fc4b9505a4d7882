#include "worker/collectives/cuda/stream_wait.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/patience.h"

namespace quicksilver {

absl::StatusOr<std::unique_ptr<StreamWait>> StreamWait::Create(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags"));
  return std::unique_ptr<StreamWait>(new StreamWait(stream, event));
}

StreamWait::~StreamWait() { cudaEventDestroy(event_); }

absl::Status StreamWait::Wait(absl::Duration timeout, const std::function<absl::Status()>& check) {
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(event_, stream_), "cudaEventRecord"));
  Patience patience(timeout);
  while (true) {
    const cudaError_t state = cudaEventQuery(event_);
    if (state != cudaErrorNotReady) return CudaStatus(state, "cudaEventQuery");
    cudaGetLastError();  // "Not ready" is no error to remember.
    RETURN_IF_ERROR(check());
    if (!patience.Pause()) {
      return absl::DeadlineExceededError(
          absl::StrCat("the device has not finished its work within ", absl::FormatDuration(timeout)));
    }
  }
}

}  // namespace quicksilver
