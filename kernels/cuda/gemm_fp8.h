#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_problem.h"

namespace quicksilver {

/// Whether the library multiplies e4m3 matrices with a scale of every row on both sides, on this device. Found out by
/// doing so: numbers with known products, every scale in its place. Waits for the device.
absl::StatusOr<bool> LibraryScalesFp8(const GemmLibrary& library, cudaStream_t stream);

}  // namespace quicksilver
