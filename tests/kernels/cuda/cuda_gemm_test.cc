#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/gemm_device.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void CheckOk(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }

/// Small enough to be tried out on a CPU.
CudaGemmOptions SmallOptions(DType activation, bool fp8 = false) {
  CudaGemmOptions options;
  options.activation = activation;
  options.fp8_layers = fp8;
  options.plans.small_rows = 32;
  options.plans.large_rows = 96;
  options.plans.workspace_bytes = size_t{1} << 20;
  options.plans.timed_runs = 0;
  options.plans.cold_cache = false;
  options.row_buckets = {8, 32, 96};
  return options;
}

/// A CudaGemm with what it needs.
class GemmUnderTest {
 public:
  explicit GemmUnderTest(const CudaGemmOptions& options, const CublasLtLibrary* library = nullptr)
      : activation_(options.activation) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    staging_ = *Staging::Create(stream_, size_t{1} << 20);
    absl::StatusOr<std::unique_ptr<CudaGemm>> gemm =
        CudaGemm::Make(library != nullptr ? *library : **LoadCublasLt(), options, *staging_, stream_);
    EXPECT_TRUE(gemm.ok()) << gemm.status();
    gemm_ = *std::move(gemm);
  }
  ~GemmUnderTest() {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    gemm_ = nullptr;
    staging_ = nullptr;
    cudaStreamDestroy(stream_);
  }
  GemmUnderTest(const GemmUnderTest&) = delete;
  GemmUnderTest& operator=(const GemmUnderTest&) = delete;

  CudaGemm& gemm() { return *gemm_; }
  cudaStream_t stream() const { return stream_; }
  DType activation() const { return activation_; }

  std::unique_ptr<GemmWeight> Prepare(const HostMatrix& m, WeightRole role = WeightRole::kLayer) {
    absl::StatusOr<std::unique_ptr<GemmWeight>> weight =
        gemm_->Prepare({m.values.data(), m.rows, m.cols, m.cols, DType::kF32}, role);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

  HostMatrix Multiply(const HostMatrix& x, const GemmWeight& weight, int64_t gap = 0) {
    return Multiply(x, weight, gap, activation_);
  }
  HostMatrix Multiply(const HostMatrix& x, const GemmWeight& weight, int64_t gap, DType out_type) {
    const DeviceRows device_x(x, activation_, gap), out(x.rows, weight.out_features(), out_type, gap);
    CheckOk(gemm_->Multiply(device_x.view(), weight, out.view()));
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return out.Get();
  }

 private:
  DType activation_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CudaGemm> gemm_;
};

HostMatrix Product(const HostMatrix& x, const HostMatrix& weight) {
  HostMatrix out(x.rows, weight.rows);
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t o = 0; o < weight.rows; ++o) {
      double sum = 0.0;
      for (int64_t i = 0; i < x.cols; ++i) sum += double{x.at(n, i)} * weight.at(o, i);
      out.at(n, o) = static_cast<float>(sum);
    }
  }
  return out;
}

void ExpectNear(const HostMatrix& actual, const HostMatrix& expected, double relative, double absolute) {
  ASSERT_EQ(actual.values.size(), expected.values.size());
  for (size_t i = 0; i < actual.values.size(); ++i) {
    ASSERT_NEAR(actual.values[i], expected.values[i], relative * std::abs(expected.values[i]) + absolute)
        << "row " << static_cast<int64_t>(i) / actual.cols << ", column " << static_cast<int64_t>(i) % actual.cols;
  }
}

struct Size {
  int64_t rows, in, out;
};

// Aligned and not; less than a bucket, one, several and a rest.
TEST(CudaGemmTest, MultipliesByTheTransposedWeight) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    GemmUnderTest gemm(SmallOptions(dtype));
    for (const auto& [rows, in, out] :
         {Size{0, 16, 16}, {1, 1, 1}, {3, 5, 7}, {8, 64, 64}, {33, 64, 48}, {200, 40, 21}}) {
      for (const int64_t gap : {0, 3, 8}) {
        SCOPED_TRACE(absl::StrCat(rows, " x ", in, " by ", out, ", gap ", gap));
        const HostMatrix x = Rounded(RandomMatrix(rows, in, 1), dtype), weight = RandomMatrix(out, in, 2, 0.1f);
        const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
        const HostMatrix expected = Product(x, Rounded(weight, dtype));
        ExpectNear(gemm.Multiply(x, *prepared, gap), expected, dtype == DType::kF32 ? 1e-6 : 0x1p-8, 1e-5);
        ExpectNear(gemm.Multiply(x, *prepared, gap, DType::kF32), expected, 1e-6, 1e-5);
      }
    }
  }
}

/// Runs some rows alone and together, and expects the same bits.
void ExpectRowsDoNotMix(GemmUnderTest& gemm, const GemmWeight& weight, int64_t in) {
  const HostMatrix x = RandomMatrix(130, in, 3);
  const HostMatrix together = gemm.Multiply(x, weight);
  std::mt19937 generator(5);
  std::vector<int32_t> order(130);
  std::iota(order.begin(), order.end(), 0);
  for (const int64_t rows : {1, 2, 7, 8, 9, 31, 32, 33, 64, 95, 96, 97, 129}) {
    SCOPED_TRACE(absl::StrCat(rows, " rows"));
    std::shuffle(order.begin(), order.end(), generator);
    const std::vector<int32_t> some(order.begin(), order.begin() + rows);
    ExpectSameBits(gemm.Multiply(SelectRows(x, some), weight, rows % 2 == 0 ? 0 : 5), SelectRows(together, some));
  }
}

TEST(CudaGemmTest, KeepsRowsApartInDeterministicMode) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    GemmUnderTest gemm(SmallOptions(dtype));
    for (const auto& [in, out] : {std::pair<int64_t, int64_t>{512, 96}, {63, 65}}) {
      const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(out, in, 4));
      ExpectRowsDoNotMix(gemm, *weight, in);
    }
    const GemmPlansReport report = gemm.gemm().report();
    EXPECT_EQ(report.families, 2);
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

TEST(CudaGemmTest, ASliceOfTheWeightHasTheBitsOfTheWhole) {
  for (const DType out_type : {DType::kF32, DType::kBf16}) {
    GemmUnderTest gemm(SmallOptions(DType::kBf16));
    const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(301, 256, 4), WeightRole::kHead);
    const HostMatrix x = RandomMatrix(70, 256, 3);
    const HostMatrix whole = gemm.Multiply(x, *weight, 0, out_type);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 48}, {48, 128}, {176, 125}}) {
      for (const int64_t rows : {5, 32, 70}) {
        const DeviceRows device_x(SelectRows(x, {0, 1, 2, 3, 4}), DType::kBf16), all(x, DType::kBf16);
        const DeviceRows out(rows, 144, out_type);
        Matrix tile = out.view();
        tile.cols = count;
        const ConstMatrix some = TopRows(all.view(), rows);
        CheckOk(gemm.gemm().MultiplyRows(some, *weight, first, tile));
        ASSERT_EQ(cudaStreamSynchronize(gemm.stream()), cudaSuccess);
        const HostMatrix got = out.Get();
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < count; ++c) {
            ASSERT_EQ(BitsOfFloat(got.at(r, c)), BitsOfFloat(whole.at(r, first + c)))
                << rows << " rows, row " << r << ", feature " << first + c;
          }
        }
      }
    }
  }
}

TEST(CudaGemmTest, RecordedProductsGetAPlanOfTheirOwnAndRunAgain) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16));
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(64, 128, 4));
  const HostMatrix x = RandomMatrix(20, 128, 3);
  const HostMatrix expected = gemm.Multiply(x, *weight);
  const DeviceRows device_x(x, DType::kBf16), out(20, 64, DType::kBf16);
  const uint64_t kernels = TwinDevice().calls("kernel");
  ASSERT_EQ(cudaStreamBeginCapture(gemm.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CheckOk(gemm.gemm().Multiply(device_x.view(), *weight, out.view()));
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(gemm.stream(), &graph), cudaSuccess);
  EXPECT_GT(TwinDevice().calls("kernel"), kernels);  // It was tried out.
  size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 1u);  // No copies.
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(exec, gemm.stream()), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(gemm.stream()), cudaSuccess);
  ExpectSameBits(out.Get(), expected);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
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
  EXPECT_THAT(gemm.gemm().report().choices, HasSubstr("96 x 512 to 96: in parts"));
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
  GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true));
  const int64_t out = 1200, in = 4096;  // 19 MiB of floats.
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

/// The library of a device that knows no scales of rows.
CublasLtLibrary WithoutRowScales() {
  CublasLtLibrary library = **LoadCublasLt();
  library.MatmulDescSetAttribute =
      +[](cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes) {
        if (attribute == CUBLASLT_MATMUL_DESC_A_SCALE_MODE) return CUBLAS_STATUS_NOT_SUPPORTED;
        return cublasLtMatmulDescSetAttribute(description, attribute, value, bytes);
      };
  return library;
}

// The sums of e4m3 products are the library's, so the reference multiplies what e4m3 keeps of both sides.
TEST(CudaGemmFp8Test, MultipliesQuantisedRows) {
  const CublasLtLibrary unscaled = WithoutRowScales();
  for (const CublasLtLibrary* library : {static_cast<const CublasLtLibrary*>(nullptr), &unscaled}) {
    GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true), library);
    EXPECT_THAT(gemm.gemm().name(),
                HasSubstr(library == nullptr ? "layers e4m3 scaled by the library" : "layers e4m3 scaled afterwards"));
    for (const auto& [rows, in, out] : {Size{1, 16, 16}, {3, 5, 7}, {33, 64, 48}, {200, 40, 21}, {8, 512, 96}}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", in, " by ", out));
      const HostMatrix x = Rounded(RandomMatrix(rows, in, 1), DType::kBf16), weight = RandomMatrix(out, in, 2, 0.1f);
      const std::unique_ptr<GemmWeight> prepared = gemm.Prepare(weight);
      const HostMatrix kept = Product(Requantized(x), Requantized(weight));
      for (const int64_t gap : {0, 3}) {
        ExpectNear(gemm.Multiply(x, *prepared, gap), kept, 0x1p-8, 1e-5);
        ExpectNear(gemm.Multiply(x, *prepared, gap, DType::kF32), kept, 1e-6, 1e-5);
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

TEST(CudaGemmFp8Test, KeepsRowsApart) {
  const CublasLtLibrary unscaled = WithoutRowScales();
  for (const CublasLtLibrary* library : {static_cast<const CublasLtLibrary*>(nullptr), &unscaled}) {
    GemmUnderTest gemm(SmallOptions(DType::kBf16, /*fp8=*/true), library);
    const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(96, 512, 4));
    ExpectRowsDoNotMix(gemm, *weight, 512);
    EXPECT_GT(gemm.gemm().report().algorithms_refused, 0);
  }
}

TEST(CudaGemmFp8Test, ANanRowStaysNanAndSpoilsNoOther) {
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

TEST(CudaGemmFp8Test, TheHeadStaysBf16) {
  GemmUnderTest fp8(SmallOptions(DType::kBf16, /*fp8=*/true)), bf16(SmallOptions(DType::kBf16));
  const HostMatrix m = RandomMatrix(48, 64, 1), x = RandomMatrix(9, 64, 2);
  const auto head = fp8.Prepare(m, WeightRole::kHead);
  EXPECT_EQ(head->bytes(), size_t{48 * 64 * 2});
  ExpectSameBits(fp8.Multiply(x, *head), bf16.Multiply(x, *bf16.Prepare(m, WeightRole::kHead)));
}

TEST(CudaGemmFp8Test, IsTwoLaunches) {
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
  EXPECT_EQ(nodes, 2u);
  cudaGraphDestroy(graph);
}

TEST(CudaGemmFp8Test, RefusesFloatActivations) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const std::unique_ptr<Staging> staging = *Staging::Create(stream, 1 << 20);
  const auto gemm = CudaGemm::Make(**LoadCublasLt(), SmallOptions(DType::kF32, /*fp8=*/true), *staging, stream);
  EXPECT_EQ(gemm.status().code(), absl::StatusCode::kInvalidArgument);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace quicksilver
