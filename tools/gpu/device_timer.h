#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/gemm_memory.h"

namespace quicksilver {

/// The value at `part` (0 to 1) of the sorted `values`. Requires: not empty.
inline double Quantile(std::vector<double> values, double part) {
  CHECK(!values.empty());
  const auto at = static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

inline double Median(const std::vector<double>& values) { return Quantile(values, 0.5); }

/// Seconds between two events of a stream for each of `count` calls of `enqueue`, after `warm_up` calls that do not
/// count. Waits for the stream.
inline absl::StatusOr<std::vector<double>> TimeOnDevice(cudaStream_t stream, int warm_up, int count,
                                                        const std::function<absl::Status()>& enqueue) {
  ASSIGN_OR_RETURN(const CudaEvent begin, MakeCudaEvent(cudaEventDefault));
  ASSIGN_OR_RETURN(const CudaEvent end, MakeCudaEvent(cudaEventDefault));
  std::vector<double> seconds;
  for (int i = 0; i < warm_up + count; ++i) {
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(begin.get(), stream), "cudaEventRecord"));
    RETURN_IF_ERROR(enqueue());
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(end.get(), stream), "cudaEventRecord"));
    RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(end.get()), "cudaEventSynchronize"));
    float milliseconds = 0.0f;
    RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime"));
    if (i >= warm_up) seconds.push_back(milliseconds * 1e-3);
  }
  return seconds;
}

}  // namespace quicksilver
