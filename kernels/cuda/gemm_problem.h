#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// What is multiplied, always with float sums. kF32: never through TF32. kFp8Scaled: e4m3, the library multiplies by a
/// scale of every row of x and of the weight. kFp8: e4m3 without scales.
enum class GemmArithmetic : uint8_t { kF32, kBf16, kFp8Scaled, kFp8 };

/// Bytes of an element of x and of the weight.
constexpr int64_t GemmElementBytes(GemmArithmetic arithmetic) {
  return arithmetic == GemmArithmetic::kF32 ? 4 : arithmetic == GemmArithmetic::kBf16 ? 2 : 1;
}

/// Leading dimensions and base addresses are multiples of this: what the fast kernels load at once.
inline constexpr int64_t kGemmAlignmentBytes = 16;
/// `out` is a multiple of it, so that rows of every type are aligned.
inline constexpr int64_t kGemmOutUnit = 16;

constexpr int64_t RoundUpTo(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

/// out[rows, out] = x[rows, in] * weight[out, in]^T for any number of rows. `in` is padded: all of it is multiplied.
struct GemmShape {
  GemmArithmetic arithmetic = GemmArithmetic::kBf16;
  DType out_type = DType::kBf16;
  int64_t out = 0;
  int64_t in = 0;

  auto Key() const { return std::tuple(arithmetic, out_type, out, in); }
  bool operator<(const GemmShape& other) const { return Key() < other.Key(); }
};

/// Device memory of one product. Rows are in row-major order; strides count elements.
struct GemmOperands {
  const void* x = nullptr;
  int64_t x_stride = 0;
  const float* x_scales = nullptr;       ///< [rows], with kFp8Scaled.
  const void* weight = nullptr;          ///< [out, in], dense.
  const float* weight_scales = nullptr;  ///< [out], with kFp8Scaled.
  void* out = nullptr;
  int64_t out_stride = 0;
};

struct GemmAlgorithm {
  cublasLtMatmulAlgo_t choice = {};
  size_t workspace_bytes = 0;

  bool operator==(const GemmAlgorithm& other) const;
};

/// cuBLASLt in our terms: it sees columns where we see rows, so the weight is its transposed A and x its B.
class GemmLibrary {
 public:
  /// `library` outlives this. Unavailable, FailedPrecondition: as CudaStatus() says of the device.
  static absl::StatusOr<std::unique_ptr<GemmLibrary>> Make(const CublasLtLibrary& library);
  ~GemmLibrary();
  GemmLibrary(const GemmLibrary&) = delete;
  GemmLibrary& operator=(const GemmLibrary&) = delete;

  /// What the library advises for operands aligned to kGemmAlignmentBytes, the best guess first; empty when it does not
  /// support the shape. At most `count`.
  std::vector<GemmAlgorithm> Advise(const GemmShape& shape, int64_t rows, size_t workspace_bytes_max, int count) const;

  /// Whether the algorithm can do this product, as far as the library says without doing it.
  bool Supports(const GemmShape& shape, int64_t rows, const GemmAlgorithm& algorithm, size_t workspace_bytes_max) const;

  /// Enqueues the product. FailedPrecondition: the algorithm cannot do it, and nothing was enqueued.
  absl::Status Multiply(const GemmShape& shape, int64_t rows, const GemmOperands& operands,
                        const GemmAlgorithm& algorithm, void* workspace, size_t workspace_bytes,
                        cudaStream_t stream) const;

  std::string version() const;  ///< E.g. "13.1.0".
  /// Its number, tile, stages, cluster and split, for logs.
  std::string Describe(const GemmAlgorithm& algorithm) const;

 private:
  struct Description;

  GemmLibrary(const CublasLtLibrary& library, cublasLtHandle_t handle) : library_(library), handle_(handle) {}
  absl::StatusOr<Description> Describe(const GemmShape& shape, int64_t rows, const GemmOperands& operands) const;
  template <typename T>
  long long Setting(const GemmAlgorithm& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) const;

  const CublasLtLibrary& library_;
  cublasLtHandle_t handle_;
};

}  // namespace quicksilver
