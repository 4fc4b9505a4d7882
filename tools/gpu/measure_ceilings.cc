#include "tools/gpu/measure_ceilings.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/philox.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/gemm_memory.h"
#include "kernels/cuda/gemm_problem.h"
#include "kernels/host_float.h"
#include "tools/gpu/device_timer.h"

namespace quicksilver {
namespace {

constexpr int kWarmUp = 3;
constexpr int kAlgorithms = 8;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;

absl::StatusOr<double> CopyBytesPerSecond(const CeilingSizes& sizes, cudaStream_t stream) {
  ASSIGN_OR_RETURN(const CudaMemory from, AllocateDeviceMemory(sizes.copy_bytes, "the copy"));
  ASSIGN_OR_RETURN(const CudaMemory to, AllocateDeviceMemory(sizes.copy_bytes, "the copy"));
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(from.get(), 0x5a, sizes.copy_bytes, stream), "cudaMemsetAsync"));
  ASSIGN_OR_RETURN(const std::vector<double> seconds, TimeOnDevice(stream, kWarmUp, sizes.rounds, [&] {
                     return CudaStatus(
                         cudaMemcpyAsync(to.get(), from.get(), sizes.copy_bytes, cudaMemcpyDeviceToDevice, stream),
                         "cudaMemcpyAsync");
                   }));
  return 2.0 * static_cast<double>(sizes.copy_bytes) / Median(seconds);
}

/// Random numbers that are finite in both types: bf16 in (-1, 1), e4m3 below 2.
absl::Status FillRandom(GemmArithmetic arithmetic, size_t bytes, void* memory) {
  constexpr size_t kPieceBytes = size_t{4} << 20;
  std::vector<uint16_t> piece(std::min(bytes, kPieceBytes) / sizeof(uint16_t));
  for (size_t i = 0; i < piece.size(); ++i) {
    const PhiloxWords words = Philox(/*key=*/2, static_cast<uint32_t>(i), 0, 0, 0);
    const float uniform = static_cast<float>(words.w[0] >> 8) * 0x1p-23f - 1.0f;
    piece[i] = arithmetic == GemmArithmetic::kBf16 ? FloatToBf16(uniform) : words.w[1] & 0xbfbf;
  }
  for (size_t at = 0; at < bytes; at += kPieceBytes) {
    const size_t count = std::min(bytes - at, kPieceBytes);
    RETURN_IF_ERROR(CudaStatus(cudaMemcpy(static_cast<char*>(memory) + at, piece.data(), count, cudaMemcpyHostToDevice),
                               "cudaMemcpy"));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> FlopsPerSecond(const GemmLibrary& library, GemmArithmetic arithmetic, const CeilingSizes& sizes,
                                      cudaStream_t stream) {
  const int64_t n = sizes.product;
  const auto operand_bytes = static_cast<size_t>(n * n * GemmElementBytes(arithmetic));
  ASSIGN_OR_RETURN(const CudaMemory x, AllocateDeviceMemory(operand_bytes, "a product"));
  ASSIGN_OR_RETURN(const CudaMemory weight, AllocateDeviceMemory(operand_bytes, "a product"));
  ASSIGN_OR_RETURN(const CudaMemory out, AllocateDeviceMemory(static_cast<size_t>(n * n) * 2, "a product"));
  ASSIGN_OR_RETURN(const CudaMemory workspace, AllocateDeviceMemory(kWorkspaceBytes, "a product"));
  RETURN_IF_ERROR(FillRandom(arithmetic, operand_bytes, x.get()));
  RETURN_IF_ERROR(FillRandom(arithmetic, operand_bytes, weight.get()));
  const GemmShape shape = {.arithmetic = arithmetic, .out_type = DType::kBf16, .out = n, .in = n};
  const GemmOperands operands = {
      .x = x.get(), .x_stride = n, .weight = weight.get(), .out = out.get(), .out_stride = n};
  double best = 0.0;
  for (const GemmAlgorithm& algorithm : library.Advise(shape, n, kWorkspaceBytes, kAlgorithms)) {
    const absl::StatusOr<std::vector<double>> seconds = TimeOnDevice(stream, kWarmUp, sizes.rounds, [&] {
      return library.Multiply(shape, n, operands, algorithm, workspace.get(), kWorkspaceBytes, stream);
    });
    if (absl::IsFailedPrecondition(seconds.status())) continue;  // This algorithm cannot do it after all.
    RETURN_IF_ERROR(seconds.status());
    const auto edge = static_cast<double>(n);
    best = std::max(best, 2.0 * edge * edge * edge / Median(*seconds));
  }
  return best;
}

}  // namespace

absl::StatusOr<Ceilings> MeasureCeilings(const CeilingSizes& sizes) {
  ASSIGN_OR_RETURN(const CudaStream stream, MakeCudaStream());
  ASSIGN_OR_RETURN(const CublasLtLibrary* const functions, LoadCublasLt());
  ASSIGN_OR_RETURN(const std::unique_ptr<GemmLibrary> library, GemmLibrary::Make(*functions));
  Ceilings ceilings;
  ASSIGN_OR_RETURN(ceilings.copy_bytes_per_second, CopyBytesPerSecond(sizes, stream.get()));
  ASSIGN_OR_RETURN(ceilings.bf16_flops_per_second,
                   FlopsPerSecond(*library, GemmArithmetic::kBf16, sizes, stream.get()));
  ASSIGN_OR_RETURN(ceilings.fp8_flops_per_second, FlopsPerSecond(*library, GemmArithmetic::kFp8, sizes, stream.get()));
  return ceilings;
}

}  // namespace quicksilver
