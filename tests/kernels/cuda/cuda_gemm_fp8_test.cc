#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/cuda/cuda_gemm_fixture.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;
using CudaGemmFp8Test = DeviceTest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The library of a device that knows no scales of rows.
CublasLtLibrary WithoutRowScales() {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulDescSetAttribute =
      +[](cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes) {
        if (attribute == CUBLASLT_MATMUL_DESC_A_SCALE_MODE) return CUBLAS_STATUS_NOT_SUPPORTED;
        return (*LoadCublasLt())->MatmulDescSetAttribute(description, attribute, value, bytes);
      };
  return library;
}

/// The largest sum of magnitudes that an output is made of.
double LargestSum(const HostMatrix& x, const HostMatrix& weight) {
  HostMatrix x_size = x, weight_size = weight;
  for (float& value : x_size.values) value = std::abs(value);
  for (float& value : weight_size.values) value = std::abs(value);
  const HostMatrix sums = Product(x_size, weight_size);
  return *std::max_element(sums.values.begin(), sums.values.end());
}

// The sums of e4m3 products are the library's, so the reference multiplies what e4m3 keeps of both sides.
TEST_F(CudaGemmFp8Test, MultipliesQuantisedRows) {
  const CublasLtLibrary unscaled = WithoutRowScales();
  for (const CublasLtLibrary* library : {static_cast<const CublasLtLibrary*>(nullptr), &unscaled}) {
    GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true), library);
    if (library != nullptr || kOnTwin) {
      const char* const how =
          library == nullptr ? "layers e4m3 scaled by the library" : "layers e4m3 scaled afterwards";
      EXPECT_THAT(gemm.gemm().name(), HasSubstr(how));
    }
    for (const auto& [rows, in, out] : {Size{1, 16, 16}, {3, 5, 7}, {33, 64, 48}, {200, 40, 21}, {8, 512, 96}}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", in, " by ", out));
      const HostMatrix x = Rounded(RandomMatrix(rows, in, 1), DType::kBf16), weight = RandomMatrix(out, in, 2, 0.1f);
      const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
      const HostMatrix kept = Product(Requantized(x), Requantized(weight));
      const double error_max = kE4m3SumError * LargestSum(x, weight) + 1e-5;
      for (const int64_t gap : {0, 3}) {
        ExpectNear(gemm.Multiply(x, *prepared, gap), kept, 0x1p-8, error_max);
        ExpectNear(gemm.Multiply(x, *prepared, gap, DType::kF32), kept, 1e-6, error_max);
      }
      // Three bits of fraction: a relative error of at most 2^-4 of every factor.
      const HostMatrix exact = Product(x, weight);
      double error = 0.0, size = 0.0;
      for (size_t i = 0; i < exact.values.size(); ++i) {
        error += std::pow(double{kept.values[i]} - exact.values[i], 2);
        size += std::pow(double{exact.values[i]}, 2);
      }
      if (in >= 64) {
        EXPECT_LT(std::sqrt(error / size), 0.06);
      }
    }
  }
}

TEST_F(CudaGemmFp8Test, KeepsRowsApart) {
  const CublasLtLibrary unscaled = WithoutRowScales();
  for (const CublasLtLibrary* library : {static_cast<const CublasLtLibrary*>(nullptr), &unscaled}) {
    GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true), library);
    const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
    ExpectRowsDoNotMix(gemm, *weight, 512);
    if (kOnTwin) {
      EXPECT_GT(gemm.gemm().report().algorithms_refused, 0);
    }
  }
}

TEST_F(CudaGemmFp8Test, ANanRowStaysNanAndSpoilsNoOther) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true));
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(70, 48, 1));
  const HostMatrix x = RandomMatrix(10, 48, 2);
  HostMatrix spoiled = x;
  for (int64_t c = 0; c < 48; ++c) spoiled.at(4, c) = kNan;
  spoiled.at(6, 3) = kInfinity;
  const HostMatrix result = gemm.Multiply(spoiled, *weight);
  const std::vector<int32_t> others = {0, 1, 2, 3, 5, 7, 8, 9};
  ExpectSameBits(SelectRows(result, others), SelectRows(gemm.Multiply(x, *weight), others));
  for (int64_t c = 0; c < 70; ++c) {
    EXPECT_TRUE(std::isnan(result.at(4, c)));
    EXPECT_FALSE(std::isfinite(result.at(6, c)));
  }
}

TEST_F(CudaGemmFp8Test, TheHeadStaysBf16) {
  GemmUnderTest fp8(SmallOptions(DType::kBf16, /*fp8=*/true)), bf16(SmallOptions(DType::kBf16));
  const HostMatrix m = RandomMatrix(48, 64, 1), x = RandomMatrix(9, 64, 2);
  const auto head = fp8.Prepare(m, WeightRole::kHead);
  EXPECT_EQ(head->bytes(), size_t{48 * 64 * 2});
  ExpectSameBits(fp8.Multiply(x, *head), bf16.Multiply(x, *bf16.Prepare(m, WeightRole::kHead)));
}

TEST_F(CudaGemmFp8Test, IsTwoLaunches) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true));
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(64, 128, 4));
  const DeviceRows x(RandomMatrix(32, 128, 1), DType::kBf16), out(32, 64, DType::kBf16);
  CheckOk(gemm.gemm().Multiply(x.view(), *weight, out.view()));
  ASSERT_EQ(cudaStreamBeginCapture(gemm.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CheckOk(gemm.gemm().Multiply(x.view(), *weight, out.view()));
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(gemm.stream(), &graph), cudaSuccess);
  size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_LE(nodes, kOnTwin ? 2u : 3u);  // A device may add up what it has split.
  cudaGraphDestroy(graph);
}

TEST_F(CudaGemmFp8Test, RefusesFloatActivations) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const std::unique_ptr<Staging> staging = *Staging::Create(stream, 1 << 20);
  const auto gemm = CudaGemm::Make(**LoadCublasLt(), SmallOptions(DType::kF32, /*fp8=*/true), *staging, stream);
  EXPECT_EQ(gemm.status().code(), absl::StatusCode::kInvalidArgument);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace quicksilver
