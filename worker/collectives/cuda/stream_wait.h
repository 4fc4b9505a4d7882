#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace quicksilver {

/// Waits for the work of a stream without blocking in the driver: a kernel that waits for a dead peer would hold
/// cudaStreamSynchronize for ever. One thread at a time.
class StreamWait {
 public:
  static absl::StatusOr<std::unique_ptr<StreamWait>> Create(cudaStream_t stream);
  ~StreamWait();
  StreamWait(const StreamWait&) = delete;
  StreamWait& operator=(const StreamWait&) = delete;

  /// Until all that is enqueued by now is done, or `check`, which is asked again and again, fails. DeadlineExceeded
  /// after `timeout`. What the device failed with: CudaStatus.
  absl::Status Wait(absl::Duration timeout, const std::function<absl::Status()>& check);

 private:
  StreamWait(cudaStream_t stream, cudaEvent_t event) : stream_(stream), event_(event) {}

  const cudaStream_t stream_;
  const cudaEvent_t event_;
};

}  // namespace quicksilver
