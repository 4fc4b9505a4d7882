#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_options.h"
#include "kernels/ops.h"

namespace quicksilver {

struct CudaOpsOptions {
  /// kBf16: the tensor cores. kF32: plain float arithmetic, exact and slow, for comparisons.
  DType activation = DType::kBf16;
  int32_t device = 0;         ///< As the CUDA runtime counts them.
  bool deterministic = true;  ///< A row's bits depend on that row alone (Ops); false: the fastest matrix products.
  bool fp8_layers = false;    ///< Layer weights and their inputs are rounded to 8 bits (e4m3). Needs kBf16.
  size_t staging_bytes = size_t{32} << 20;  ///< Pinned memory that uploads and downloads pass through.
  /// More about the products; activation, fp8_layers and plans.deterministic are taken from above.
  CudaGemmOptions gemm;
};

/// The operations of one NVIDIA device, enqueued on a stream of its own. After a failure nothing is enqueued any more.
/// Use it on one thread at a time; the thread's current device is changed. Destroy weights, buffers and programs first.
/// FailedPrecondition, saying what was found and what is needed: no driver or too old a one, no such device, one that
/// the kernels are not built for, or no matrix product library. ResourceExhausted: no memory for the workspaces.
absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(const CudaOpsOptions& options);

/// The stream of an Ops that MakeCudaOps() has made: for communicators, whose work is then in order with its.
cudaStream_t CudaStreamOf(const Ops& ops);

/// How its matrix products are done so far, and what determinism costs them.
GemmPlansReport CudaProductsOf(const Ops& ops);

}  // namespace quicksilver
