#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_error.h"

namespace quicksilver {

/// Recorded work that a stream can run again and again.
class RecordedGraph {
 public:
  /// Records what `enqueue` puts into `stream`, which then has done nothing. `enqueue` returns its first failure. With
  /// `proceed` (device memory) the work repeats for as long as *proceed is not 0 after a pass.
  static absl::StatusOr<std::unique_ptr<RecordedGraph>> Record(cudaStream_t stream, const int32_t* proceed,
                                                               const std::function<absl::Status()>& enqueue);
  ~RecordedGraph();
  RecordedGraph(const RecordedGraph&) = delete;
  RecordedGraph& operator=(const RecordedGraph&) = delete;

  cudaError_t Launch(cudaStream_t stream) const { return cudaGraphLaunch(exec_, stream); }

 private:
  explicit RecordedGraph(cudaGraphExec_t exec) : exec_(exec) {}

  const cudaGraphExec_t exec_;
};

/// Ends a pass of a loop: it goes on when *proceed is not 0. To be recorded last into its body.
cudaError_t LaunchContinueLoop(cudaGraphConditionalHandle loop, const int32_t* proceed, cudaStream_t stream);

}  // namespace quicksilver
