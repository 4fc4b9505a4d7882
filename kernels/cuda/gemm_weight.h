#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/gemm_memory.h"
#include "kernels/cuda/gemm_problem.h"
#include "kernels/cuda/staging.h"
#include "kernels/ops.h"

namespace quicksilver {

/// A weight in device memory: row-major as it came, padded with zeros to whole units in both directions.
class CudaGemmWeight final : public GemmWeight {
 public:
  CudaGemmWeight(int64_t out, int64_t in, GemmArithmetic arithmetic, CudaMemory memory);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  size_t bytes() const override { return BytesOf(out_, in_, arithmetic_); }

  GemmArithmetic arithmetic() const { return arithmetic_; }
  int64_t padded_out() const { return RoundUpTo(out_, kGemmOutUnit); }
  int64_t padded_in() const { return RoundUpTo(in_, kGemmAlignmentBytes / GemmElementBytes(arithmetic_)); }
  char* row(int64_t out) const {
    return static_cast<char*>(memory_.get()) + out * padded_in() * GemmElementBytes(arithmetic_);
  }
  float* scales() const;  ///< [padded_out], of e4m3.

  static size_t BytesOf(int64_t out, int64_t in, GemmArithmetic arithmetic);

 private:
  int64_t out_;
  int64_t in_;
  GemmArithmetic arithmetic_;
  CudaMemory memory_;
};

/// Calls `take` for the rows of a matrix, part by part and in order, each dense in device memory that is good until the
/// next call's work in the stream. Host memory has been read on return and passes through `staging` and at most a few
/// MiB of `raw` device memory; device memory is taken as it is, in one part.
absl::Status ForUploadedRows(ConstMatrix matrix, Staging& staging, DeviceWorkspace& raw,
                             absl::FunctionRef<absl::Status(const ConstMatrix& rows, int64_t first_row)> take);

/// Copies a matrix [out, in], f32 or bf16, from host or device memory and rounds it to what `arithmetic` multiplies.
/// As ForUploadedRows;
/// device memory is read in the order of the stream.
absl::StatusOr<std::unique_ptr<CudaGemmWeight>> LoadGemmWeight(ConstMatrix matrix, GemmArithmetic arithmetic,
                                                               Staging& staging, DeviceWorkspace& raw,
                                                               cudaStream_t stream);

}  // namespace quicksilver
