#include "kernels/cuda/gemm_fp8.h"

#include <cstdint>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/gemm_kernels.h"
#include "kernels/host_float.h"

namespace quicksilver {
namespace {

constexpr GemmShape kShape = {
    .arithmetic = GemmArithmetic::kFp8Scaled, .out_type = DType::kBf16, .out = 256, .in = 256};
constexpr int64_t kRows = 32;
constexpr size_t kWorkspaceBytes = size_t{4} << 20;
constexpr uint8_t kOneE4m3 = 0x38;

// Small whole numbers: every product of them is exact in bf16.
float RowScale(int64_t r) { return static_cast<float>(1 + r % 3); }
float ColumnScale(int64_t c) { return static_cast<float>(1 + c % 5); }

std::vector<float> Scales(float (*scale)(int64_t), int64_t count) {
  std::vector<float> scales;
  for (int64_t i = 0; i < count; ++i) scales.push_back(scale(i));
  return scales;
}

bool AreTheProducts(const std::vector<uint16_t>& out) {
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kShape.out; ++c) {
      const float expected = static_cast<float>(kShape.in) * RowScale(r) * ColumnScale(c);
      if (Bf16ToFloat(out[static_cast<size_t>(r * kShape.out + c)]) != expected) return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<bool> LibraryScalesFp8(const GemmLibrary& library, cudaStream_t stream) {
  const std::vector<GemmAlgorithm> algorithms = library.Advise(kShape, kRows, kWorkspaceBytes, 1);
  if (algorithms.empty()) return false;
  constexpr size_t kOnes = static_cast<size_t>(kShape.out * kShape.in);  // Of the weight; x has fewer.
  constexpr size_t kScaleBytes = static_cast<size_t>(kShape.out) * sizeof(float);
  std::vector<uint16_t> out(static_cast<size_t>(kRows * kShape.out));
  const size_t out_bytes = out.size() * sizeof(uint16_t);
  ASSIGN_OR_RETURN(const CudaMemory memory, AllocateDeviceMemory(kOnes + 2 * kScaleBytes + out_bytes + kWorkspaceBytes,
                                                                 "trying out scaled FP8 products"));
  char* const ones = static_cast<char*>(memory.get());
  char* const scales = ones + kOnes;
  char* const products = scales + 2 * kScaleBytes;
  const std::vector<float> row_scales = Scales(RowScale, kRows), column_scales = Scales(ColumnScale, kShape.out);
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(ones, kOneE4m3, kOnes, stream), "cudaMemsetAsync"));
  for (const auto& [from, to] : {std::pair(&row_scales, scales), {&column_scales, scales + kScaleBytes}}) {
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from->data(), from->size() * sizeof(float), cudaMemcpyHostToDevice, stream),
                   "cudaMemcpyAsync"));
  }
  const GemmOperands operands = {.x = ones,
                                 .x_stride = kShape.in,
                                 .x_scales = reinterpret_cast<const float*>(scales),
                                 .weight = ones,
                                 .weight_scales = reinterpret_cast<const float*>(scales + kScaleBytes),
                                 .out = products,
                                 .out_stride = kShape.out};
  const bool accepted =
      library.Multiply(kShape, kRows, operands, algorithms.front(), products + out_bytes, kWorkspaceBytes, stream).ok();
  RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(out.data(), products, out_bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync"));
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "trying out scaled FP8 products"));
  return accepted && AreTheProducts(out);
}

}  // namespace quicksilver
