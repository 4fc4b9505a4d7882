#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/staging.h"
#include "kernels/ops.h"

namespace quicksilver {

/// Ops::ExpertMlp.
struct CudaExpertCall {
  ConstMatrix x;
  const ExpertWeights& weights;  ///< Of CudaExperts::Prepare.
  Activation activation;
  const int32_t* experts;
  const float* expert_weights;
  int32_t k;
  bool add;
  Matrix out;
};

/// Mixtures of experts on a stream. Memory between the kernels grows with the largest batch, up to that of kPassRows.
class CudaExperts {
 public:
  /// Rows that run at once.
  static constexpr int64_t kPassRows = 2048;

  /// `staging` outlives this, and this outlives its weights.
  CudaExperts(DType activation, int device, Staging& staging, cudaStream_t stream)
      : activation_(activation), device_(device), staging_(staging), stream_(stream) {}

  absl::StatusOr<std::unique_ptr<ExpertWeights>> Prepare(const ExpertShape& shape);
  absl::Status Run(const CudaExpertCall& call);

 private:
  class Weights;
  absl::Status RunPass(const CudaExpertCall& call, int64_t first, int64_t rows);

  const DType activation_;
  const int device_;
  Staging& staging_;
  const cudaStream_t stream_;
  DeviceWorkspace raw_{"a matrix of an expert"};
  DeviceWorkspace memory_{"outputs of experts"};
};

}  // namespace quicksilver
