#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/statusor.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/ops.h"

namespace quicksilver {

/// Cosines and sines for the rows of a step, which all its layers share.
class StepAngles {
 public:
  /// `activation`: what they are rounded to unless the rotation has full precision.
  explicit StepAngles(DType activation) : activation_(activation) {}

  void BeginStep() { kind_ = {}; }
  /// [rows, pairs]. Only the first layer that asks enqueues anything.
  absl::StatusOr<const float2*> Get(const StepLayout& layout, const RopeParameters& rope, const RopePairs& pairs,
                                    cudaStream_t stream);

 private:
  /// What angles depend on, besides the positions.
  struct Kind {
    double theta = 0.0;
    bool full_precision = false;
    int64_t pairs = 0;  // 0: none were made.
    int64_t width = 0;

    bool operator==(const Kind&) const = default;
  };

  const DType activation_;
  DeviceWorkspace memory_{"rotation angles"};
  Kind kind_;
  float2* angles_ = nullptr;
};

}  // namespace quicksilver
