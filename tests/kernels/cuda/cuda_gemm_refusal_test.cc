// What a library of matrix products may not be able to do, or do wrong.
#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/cuda/cuda_gemm_fixture.h"
#include "tests/support/cuda_twin/cublaslt_objects.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kLongSum = 256;
constexpr uint64_t kSmallBatch = 64;

bool ScalesRowsOfALongSum(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t weight, cublasLtMatrixLayout_t x) {
  return operation->a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F && weight->rows > kLongSum &&
         x->cols <= kSmallBatch;
}

/// The library, but it cannot scale rows of small batches where sums are long. kAdvises: it finds out too late.
template <bool kAdvises>
CublasLtLibrary WithoutLongScaledRows() {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulAlgoGetHeuristic =
      +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
          cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int requested,
          cublasLtMatmulHeuristicResult_t results[], int* returned) {
        *returned = 0;
        if (!kAdvises && ScalesRowsOfALongSum(operation, a, b)) return CUBLAS_STATUS_NOT_SUPPORTED;
        return cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, c, d, preference, requested, results, returned);
      };
  library.Matmul =
      +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
          cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
          const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
          const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
        if (ScalesRowsOfALongSum(operation, a_layout, b_layout)) return CUBLAS_STATUS_NOT_SUPPORTED;
        return cublasLtMatmul(handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
                              algorithm, workspace, workspace_bytes, stream);
      };
  return library;
}

TEST(CudaGemmRefusalTest, ScalesTheWeightsThatTheLibraryCannotScale) {
  for (const CublasLtLibrary& library : {WithoutLongScaledRows<false>(), WithoutLongScaledRows<true>()}) {
    for (const bool deterministic : {false, true}) {
      CudaGemmOptions options = SmallOptions(DType::kBf16, /*fp8=*/true);
      options.plans.deterministic = deterministic;
      GemmUnderTest gemm(options, &library);
      for (const int64_t in : {128, 512, 512}) {
        const HostMatrix weight = RandomMatrix(48, in, 2, 0.1f);
        const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
        for (const int64_t rows : {1, 8, 33, 96, 200}) {
          SCOPED_TRACE(absl::StrCat(rows, " x ", in, deterministic ? ", deterministic" : ", fast"));
          const HostMatrix x = Rounded(RandomMatrix(rows, in, 1), DType::kBf16);
          ExpectNear(gemm.Multiply(x, *prepared), Product(Requantized(x), Requantized(weight)), 0x1p-8, 1e-3);
        }
      }
      const GemmPlansReport report = gemm.gemm().report();
      EXPECT_EQ(report.weights_scaled_by_library, 1);
      EXPECT_EQ(report.weights_scaled_afterwards, 2);
      EXPECT_THAT(gemm.gemm().name(), HasSubstr("e4m3 scaled by the library (1 weights) and afterwards (2)"));
    }
  }
}

/// The library, but it advises nothing for 8 or 96 rows. kMultiplies: it can do them all the same.
template <bool kMultiplies>
CublasLtLibrary WithoutSomeBatches() {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulAlgoGetHeuristic =
      +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
          cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int requested,
          cublasLtMatmulHeuristicResult_t results[], int* returned) {
        *returned = 0;
        if (b->cols == 8 || b->cols == 96) return CUBLAS_STATUS_NOT_SUPPORTED;
        return cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, c, d, preference, requested, results, returned);
      };
  if (kMultiplies) return library;
  library.Matmul =
      +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
          cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
          const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
          const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
        if (b_layout->cols == 8 || b_layout->cols == 96) return CUBLAS_STATUS_NOT_SUPPORTED;
        return cublasLtMatmul(handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
                              algorithm, workspace, workspace_bytes, stream);
      };
  return library;
}

TEST(CudaGemmRefusalTest, FastProductsTakeTheAdviceForOtherBatches) {
  const HostMatrix weight = RandomMatrix(48, 128, 2, 0.1f);
  for (const bool multiplies : {true, false}) {
    const CublasLtLibrary library = multiplies ? WithoutSomeBatches<true>() : WithoutSomeBatches<false>();
    CudaGemmOptions options = SmallOptions(DType::kF32);
    options.plans.deterministic = false;
    GemmUnderTest gemm(options, &library);
    const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
    for (const int64_t rows : {8, 96}) {
      const HostMatrix x = RandomMatrix(rows, 128, 1);
      ExpectNear(gemm.Multiply(x, *prepared), Product(x, weight), 1e-5, 1e-5);
    }
    EXPECT_EQ(gemm.gemm().report().rows_refused, multiplies ? 0 : 2);
  }
}

/// The library, but where it splits sums it leaves out what is no whole tile of them.
CublasLtLibrary DroppingTails() {
  CublasLtLibrary library = **LoadCublasLt();
  library.Matmul = +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                       cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                       const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                       cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                       size_t workspace_bytes, cudaStream_t stream) {
    int32_t splits = 0;
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits, &written);
    cublasLtMatrixLayoutOpaque_t short_a = *a_layout, short_b = *b_layout;
    constexpr uint64_t kTile = 64;
    if (splits > 1) short_a.rows = short_b.rows = a_layout->rows / kTile * kTile;
    return cublasLtMatmul(handle, operation, alpha, a, &short_a, b, &short_b, beta, c, c_layout, d, d_layout, algorithm,
                          workspace, workspace_bytes, stream);
  };
  return library;
}

// In bf16 4112 and 4096 are one number, so the sum of all ones does not show that the tail is missing.
TEST(CudaGemmRefusalTest, RefusesAlgorithmsThatDropTheEndOfASum) {
  const CublasLtLibrary library = DroppingTails();
  for (const auto& [dtype, fp8] : {std::pair(DType::kF32, false), {DType::kBf16, false}, {DType::kBf16, true}}) {
    for (const bool deterministic : {false, true}) {
      CudaGemmOptions options = SmallOptions(dtype, fp8);
      options.plans.deterministic = deterministic;
      GemmUnderTest gemm(options, &library);
      for (const int64_t in : {160, 4112}) {
        const HostMatrix weight = Rounded(RandomMatrix(16, in, 2, 0.1f), DType::kBf16);
        const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
        HostMatrix x(32, in);
        for (int64_t r = 0; r < 32; ++r) x.at(r, in - 1 - r % 16) = 1.0f;
        const HostMatrix expected = fp8 ? Product(x, Requantized(weight)) : Product(x, weight);
        ExpectNear(gemm.Multiply(x, *prepared), expected, 0x1p-8, 1e-6);
      }
      EXPECT_GT(gemm.gemm().report().algorithms_wrong, 0);
      EXPECT_GE(gemm.gemm().report().algorithms_refused, gemm.gemm().report().algorithms_wrong);
      EXPECT_LT(gemm.gemm().report().algorithms_refused, gemm.gemm().report().algorithms_tried);
    }
  }
}

TEST(CudaGemmRefusalTest, AFailedSearchIsReportedAndNotCounted) {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulAlgoGetHeuristic =
      +[](cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
          cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
          cublasLtMatmulHeuristicResult_t*, int*) { return CUBLAS_STATUS_NOT_SUPPORTED; };
  GemmUnderTest gemm(SmallOptions(DType::kBf16), &library);
  const HostMatrix m = RandomMatrix(64, 128, 4);
  const auto weight = gemm.gemm().Prepare({m.values.data(), 64, 128, 128, DType::kF32}, WeightRole::kLayer);
  EXPECT_EQ(weight.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(gemm.gemm().report().families, 0);
}

}  // namespace
}  // namespace quicksilver
