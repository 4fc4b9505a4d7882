#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/gemm_options.h"
#include "kernels/cuda/gemm_plans.h"
#include "kernels/cuda/gemm_weight.h"
#include "kernels/cuda/staging.h"
#include "kernels/ops.h"

namespace quicksilver {

/// The matrix products of one device: cuBLASLt, in a way that keeps rows apart. A product of aligned rows is one launch
/// of the library (two where it splits the sum), with e4m3 one more before it that quantises x; unaligned rows are
/// copied. Rows, here, are aligned when they begin at multiples of 16 bytes and hold a multiple of 16 bytes.
///
/// A batch that has no plan of its own is cut into parts that have one, the last of them padded with zero rows: a plan
/// has been tried out for its number of rows only, so that is the number the library always gets.
///
/// docs/matrix_products.md: launches, what has never met a device, and what may be gained beyond the library.
///
/// Not thread-safe.
class CudaGemm {
 public:
  /// `library` and `staging` outlive this, and so does `stream`, on which everything runs but trying out.
  static absl::StatusOr<std::unique_ptr<CudaGemm>> Make(const CublasLtLibrary& library, const CudaGemmOptions& options,
                                                        Staging& staging, cudaStream_t stream);
  ~CudaGemm();

  /// Ops::PrepareWeight; `matrix` may also be device memory. The first weight of a size takes longer: what its products
  /// will agree on is found out while there is memory.
  absl::StatusOr<std::unique_ptr<GemmWeight>> Prepare(ConstMatrix matrix, WeightRole role);

  /// Ops::Gemm. Plans that are missing are made first, which takes long: see Tune().
  absl::Status Multiply(ConstMatrix x, const GemmWeight& weight, Matrix out);

  /// The output features [first_out, first_out + out.cols) alone, with the bits that they have in a product with all of
  /// the weight and the same out.dtype. first_out: a multiple of kGemmOutUnit. Where rows of `out` have room up to the
  /// next multiple of kGemmOutUnit, something may be written there.
  absl::Status MultiplyRows(ConstMatrix x, const GemmWeight& weight, int64_t first_out, Matrix out);

  /// Makes the plans of all layer weights prepared so far for batches of `rows`, so that no product has to wait for
  /// them. progress(done, of): after each.
  absl::Status Tune(absl::Span<const int64_t> rows, const std::function<void(int64_t, int64_t)>& progress);

  /// Between these, products take the plans that a recording takes, those for their own number of rows.
  void BeginRehearsal() { rehearsing_ = true; }
  absl::Status EndRehearsal();

  GemmPlansReport report() const;
  /// E.g. "cuBLASLt 13.1.0, bf16, layers e4m3 scaled by the library, deterministic"; of both ways where weights differ.
  std::string name() const;

 private:
  struct Product;
  struct Part;

  CudaGemm(const CudaGemmOptions& options, Staging& staging, cudaStream_t stream);

  absl::StatusOr<GemmArithmetic> ArithmeticOf(const ConstMatrix& matrix, WeightRole role);
  absl::StatusOr<bool> LibraryScales(const GemmShape& shape);
  absl::StatusOr<bool> Recording();
  absl::Status MultiplyInParts(const Product& product);
  Product Describe(ConstMatrix x, const CudaGemmWeight& weight, int64_t first_out, Matrix out) const;
  absl::StatusOr<Part> NextPart(const Product& product, int64_t rows, bool exact);
  absl::StatusOr<bool> Fits(const Product& product, int64_t rows, bool staged, Part& part);
  absl::Status Run(const Product& product, int64_t first_row, const Part& part);
  int64_t StagedRowBytes(const Product& product, bool staged) const;

  const CudaGemmOptions options_;
  Staging& staging_;
  const cudaStream_t stream_;
  GemmArithmetic layer_arithmetic_;
  GemmArithmetic head_arithmetic_;
  std::unique_ptr<GemmLibrary> library_;
  std::unique_ptr<GemmPlans> plans_;
  CudaMemory workspace_;
  DeviceWorkspace rows_{"quantised and unaligned rows of matrix products"};
  DeviceWorkspace raw_{"weights on their way to the device"};
  std::set<GemmShape> layer_shapes_;
  std::map<GemmShape, bool> library_scales_;  // What has been found out about shapes of kFp8Scaled.
  int32_t weights_scaled_by_library_ = 0;
  int32_t weights_scaled_afterwards_ = 0;
  bool rehearsing_ = false;
  bool probe_memory_held_ = false;  // A plan was made while recording, when nothing may be freed.
};

}  // namespace quicksilver
