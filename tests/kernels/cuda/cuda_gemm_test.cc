#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/cuda/cuda_gemm_fixture.h"
#include "tests/support/cuda_twin/cublaslt_objects.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(CudaGemmTest, RefusesAlgorithmsThatAddInAnotherOrder) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    GemmUnderTest gemm(SmallOptions(dtype));
    const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
    ExpectRowsDoNotMix(gemm, *weight, 512);
    const GemmPlansReport report = gemm.gemm().report();
    EXPECT_GT(report.algorithms_refused, 0) << report.choices;
    EXPECT_LT(report.algorithms_refused, report.algorithms_tried);
  }
}

// Without this, the test above would show nothing.
TEST(CudaGemmTest, TheLibraryAloneMixesRows) {
  CudaGemmOptions options = SmallOptions(DType::kF32);
  options.plans.deterministic = false;
  GemmUnderTest gemm(options);
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
  const HostMatrix x = RandomMatrix(96, 512, 3);
  const std::vector<int32_t> some = {0, 1, 2, 3};
  EXPECT_FALSE(HaveSameBits(gemm.Multiply(SelectRows(x, some), *weight), SelectRows(gemm.Multiply(x, *weight), some)));
  EXPECT_EQ(gemm.gemm().report().algorithms_refused, 0);
}

TEST(CudaGemmTest, TriesOutLessOfAWeightWhereMemoryIsShort) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16));
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(64, 128, 4));
  TwinDevice().FailCall("cudaMalloc", 1, cudaErrorMemoryAllocation);
  CheckOk(gemm.gemm().Tune({8}, nullptr));
  EXPECT_EQ(gemm.gemm().report().plans, 2);
  TwinDevice().SetTotalMemory(TwinDevice().allocated_bytes() + 1000);
  const absl::Status status = gemm.gemm().Tune({32, 40}, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("for trying out matrix products"));
  TwinDevice().SetTotalMemory(size_t{8} << 30);
  CheckOk(gemm.gemm().Tune({40}, nullptr));
}

TEST(CudaGemmTest, KeepsNoMemoryOfTryingOut) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16));
  const size_t before = TwinDevice().allocated_bytes();
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(64, 128, 4));
  const size_t raw_bytes = 64 * 128 * sizeof(float);
  EXPECT_LE(TwinDevice().allocated_bytes(), before + weight->bytes() + raw_bytes);
  gemm.Multiply(RandomMatrix(8, 128, 1), *weight);
  gemm.Multiply(RandomMatrix(8, 128, 1), *weight);  // The first product keeps it until nothing is recorded.
  EXPECT_LE(TwinDevice().allocated_bytes(), before + weight->bytes() + raw_bytes);
}

TEST(CudaGemmTest, TunesEveryLayerAndReportsProgress) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16));
  const auto first = gemm.Prepare(RandomMatrix(64, 128, 4)), same = gemm.Prepare(RandomMatrix(64, 128, 5));
  const auto other = gemm.Prepare(RandomMatrix(32, 64, 6)),
             head = gemm.Prepare(RandomMatrix(99, 64, 7), WeightRole::kHead);
  std::vector<std::pair<int64_t, int64_t>> progress;
  const size_t memory = TwinDevice().allocated_bytes();
  CheckOk(gemm.gemm().Tune({4, 32}, [&](int64_t done, int64_t of) { progress.push_back({done, of}); }));
  EXPECT_THAT(progress,
              testing::ElementsAre(testing::Pair(1, 4), testing::Pair(2, 4), testing::Pair(3, 4), testing::Pair(4, 4)));
  EXPECT_EQ(gemm.gemm().report().plans, 5);  // And of the head's first.
  EXPECT_LE(TwinDevice().allocated_bytes(), memory);
  const int32_t tried = gemm.gemm().report().algorithms_tried;
  gemm.Multiply(RandomMatrix(4, 128, 1), *same);
  EXPECT_EQ(gemm.gemm().report().algorithms_tried, tried);
}

constexpr int32_t kSmallTile = CUBLASLT_MATMUL_TILE_64x64;

int32_t SettingOf(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t setting) {
  int32_t value = 0;
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, setting, &value, sizeof value, &written);
  return value;
}

/// Cuts sums by the number of rows.
bool IsStreamK(const cublasLtMatmulAlgo_t& algorithm) { return SettingOf(algorithm, CUBLASLT_ALGO_CONFIG_ID) == 67; }
bool IsSplit(const cublasLtMatmulAlgo_t& algorithm) {
  return SettingOf(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1;
}

/// The library, but it advises nothing else.
template <bool (*kAdvised)(const cublasLtMatmulAlgo_t&)>
CublasLtLibrary Advising() {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulAlgoGetHeuristic =
      +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
          cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int requested,
          cublasLtMatmulHeuristicResult_t results[], int* returned) {
        const cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, c, d, preference, requested, results, returned);
        const auto other = [](const cublasLtMatmulHeuristicResult_t& result) { return !kAdvised(result.algo); };
        *returned = static_cast<int>(std::remove_if(results, results + *returned, other) - results);
        return status;
      };
  return library;
}

TEST(CudaGemmTest, TheDigestTellsWhatTheBitsHangOn) {
  std::vector<uint64_t> digests;
  const CublasLtLibrary split = Advising<IsSplit>();
  const CublasLtLibrary* const usual = nullptr;
  for (const CublasLtLibrary* library : {usual, usual, &split}) {
    GemmUnderTest gemm(SmallOptions(DType::kBf16), library);
    const auto weight = gemm.Prepare(RandomMatrix(64, 128, 4));
    CheckOk(gemm.gemm().Tune({8}, nullptr));
    digests.push_back(gemm.gemm().report().digest);
  }
  EXPECT_EQ(digests[0], digests[1]);
  EXPECT_NE(digests[0], digests[2]);
}

TEST(CudaGemmTest, RowsThatNoAlgorithmAgreesOnAreMultipliedInParts) {
  const CublasLtLibrary library = Advising<IsStreamK>();
  GemmUnderTest gemm(SmallOptions(DType::kF32), &library);
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
  ExpectRowsDoNotMix(gemm, *weight, 512);
  EXPECT_EQ(gemm.gemm().report().rows_refused, 1) << gemm.gemm().report().choices;  // 96 of them.
  EXPECT_THAT(gemm.gemm().report().choices, HasSubstr("96 x 512 to 96, f32 to f32: in parts"));
}

/// The library, but its small tile gives the last row of every batch other bits.
CublasLtLibrary WithAnOddLastRow() {
  CublasLtLibrary library = **LoadCublasLt();
  library.Matmul = +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                       cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                       const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                       cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                       size_t workspace_bytes, cudaStream_t stream) {
    const cublasStatus_t status = cublasLtMatmul(handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout,
                                                 d, d_layout, algorithm, workspace, workspace_bytes, stream);
    if (status == CUBLAS_STATUS_SUCCESS && SettingOf(*algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID) == kSmallTile) {
      EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      static_cast<uint32_t*>(d)[(static_cast<int64_t>(d_layout->cols) - 1) * d_layout->ld] ^= 1;
    }
    return status;
  };
  return library;
}

TEST(CudaGemmTest, RefusesAnAlgorithmThatTreatsEqualRowsDifferently) {
  const CublasLtLibrary odd = WithAnOddLastRow();
  const CublasLtLibrary* const usual = nullptr;
  for (const CublasLtLibrary* library : {usual, &odd}) {
    GemmUnderTest gemm(SmallOptions(DType::kF32), library);
    gemm.Multiply(RandomMatrix(32, 128, 1), *gemm.Prepare(RandomMatrix(64, 128, 4)));
    // Both give the same sums; the library advises the small tile first.
    EXPECT_THAT(gemm.gemm().report().choices,
                HasSubstr(library == usual ? "us (algorithm 66, tile 15, stages 16, cluster 0, split 1"
                                           : "us (algorithm 66, tile 20"));
  }
}

// A weight may be too large for all of it to be tried out.
TEST(CudaGemmTest, KeepsRowsApartWhenAPartOfTheWeightWasTriedOut) {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulAlgoCheck = +[](cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                                cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result) {
    EXPECT_EQ(a->cols, 96u);  // The whole weight is asked about.
    if (SettingOf(*algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID) == kSmallTile) return CUBLAS_STATUS_NOT_SUPPORTED;
    return cublasLtMatmulAlgoCheck(handle, operation, a, b, c, d, algorithm, result);
  };
  CudaGemmOptions options = SmallOptions(DType::kF32);
  options.plans.probe_weight_bytes_max = 32 * 512 * static_cast<int64_t>(sizeof(float));
  GemmUnderTest gemm(options, &library);
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
  ExpectRowsDoNotMix(gemm, *weight, 512);
  EXPECT_THAT(gemm.gemm().report().choices, testing::Not(HasSubstr("tile 15")));
  EXPECT_GT(gemm.gemm().report().algorithms_refused, 0);
}

TEST(CudaGemmTest, AMeasuredAnchorKeepsRowsApartToo) {
  CudaGemmOptions options = SmallOptions(DType::kF32);
  options.plans.anchor = GemmAnchor::kMeasured;
  options.plans.timed_runs = 2;
  GemmUnderTest gemm(options);
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
  ExpectRowsDoNotMix(gemm, *weight, 512);
  EXPECT_GT(gemm.gemm().report().algorithms_refused, 0);
}

TEST(CudaGemmTest, SaysThatTheLibraryCannotMultiply) {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulAlgoGetHeuristic =
      +[](cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
          cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
          cublasLtMatmulHeuristicResult_t*, int*) { return CUBLAS_STATUS_NOT_SUPPORTED; };
  for (const bool deterministic : {false, true}) {
    CudaGemmOptions options = SmallOptions(DType::kBf16);
    options.plans.deterministic = deterministic;
    GemmUnderTest gemm(options, &library);
    const HostMatrix m = RandomMatrix(64, 128, 4);
    const auto weight = gemm.gemm().Prepare({m.values.data(), 64, 128, 128, DType::kF32}, WeightRole::kLayer);
    const DeviceRows x(8, 128, DType::kBf16), out(8, 64, DType::kBf16);
    const absl::Status status = deterministic ? weight.status() : gemm.gemm().Multiply(x.view(), **weight, out.view());
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("128 to 64 features"));
  }
}

TEST(CudaGemmTest, LoadsFromHostAndDeviceMemoryAndReadsTheHostAtOnce) {
  TwinDevice().SetDeferred(true);
  GemmUnderTest gemm(SmallOptions(DType::kBf16));
  const HostMatrix original = RandomMatrix(300, 100, 1), x = RandomMatrix(8, 100, 2);
  const HostMatrix expected = gemm.Multiply(x, *gemm.Prepare(original));
  HostMatrix wide(300, 117);
  for (int64_t r = 0; r < 300; ++r) std::copy_n(original.row(r), 100, wide.values.begin() + r * 117);
  const DeviceRows device(original, DType::kF32, 5);
  auto strided = gemm.gemm().Prepare({wide.values.data(), 300, 100, 117, DType::kF32}, WeightRole::kLayer);
  auto from_device = gemm.gemm().Prepare(device.view(), WeightRole::kLayer);
  std::fill(wide.values.begin(), wide.values.end(), kNan);
  ASSERT_TRUE(strided.ok() && from_device.ok());
  ExpectSameBits(gemm.Multiply(x, **strided), expected);
  ExpectSameBits(gemm.Multiply(x, **from_device), expected);
  TwinDevice().SetDeferred(false);
}

TEST(CudaGemmTest, LoadsAWeightLargerThanItsBufferInParts) {
  CudaGemmOptions options = SmallOptions(DType::kBf16, /*fp8=*/true);
  options.plans.deterministic = false;  // So much takes long to try out.
  GemmUnderTest gemm(options);
  const int64_t out = 1056, in = 4096;  // 16.5 MiB of floats.
  HostMatrix weight(out, in);
  for (int64_t o = 0; o < out; ++o) weight.at(o, (o * 7) % in) = static_cast<float>(1 + o % 13);
  const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
  EXPECT_EQ(prepared->bytes(), static_cast<size_t>(out * in + out * 4));
  HostMatrix x(1, in);
  for (int64_t i = 0; i < in; ++i) x.at(0, i) = i % 2 == 0 ? 1.0f : -1.0f;
  const HostMatrix result = gemm.Multiply(x, *prepared);
  for (int64_t o = 0; o < out; ++o) {
    ASSERT_NEAR(result.at(0, o), static_cast<float>(1 + o % 13) * x.at(0, (o * 7) % in), 0.06f) << o;
  }
}

TEST(CudaGemmTest, SaysWhichWeightDoesNotFitAndLeaksNothing) {
  const size_t memory = TwinDevice().allocated_bytes();
  {
    GemmUnderTest gemm(SmallOptions(DType::kBf16));
    const HostMatrix m = RandomMatrix(64, 128, 1);
    for (int nth : {1, 2}) {
      TwinDevice().FailCall("cudaMalloc", nth, cudaErrorMemoryAllocation);
      const auto weight = gemm.gemm().Prepare({m.values.data(), 64, 128, 128, DType::kF32}, WeightRole::kLayer);
      ASSERT_EQ(weight.status().code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(std::string(weight.status().message()),
                  HasSubstr(nth == 1 ? "a weight of 64 x 128" : "on their way"));
    }
    gemm.Prepare(m);
  }
  EXPECT_EQ(TwinDevice().allocated_bytes(), memory);
}

}  // namespace
}  // namespace quicksilver
