#include <gtest/gtest.h>

#include <iostream>
#include <memory>
#include <utility>

#include "tests/kernels/cuda/cuda_gemm_fixture.h"

namespace quicksilver {
namespace {

using CudaGemmRowTest = DeviceTest;

// Aligned and not; less than a bucket, one, several and a rest.
TEST_F(CudaGemmRowTest, MultipliesByTheTransposedWeight) {
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

TEST_F(CudaGemmRowTest, RowsDoNotMix) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    GemmUnderTest gemm(SmallOptions(dtype));
    for (const auto& [in, out] : {std::pair<int64_t, int64_t>{512, 96}, {63, 65}}) {
      const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(out, in, 4));
      ExpectRowsDoNotMix(gemm, *weight, in);
    }
    EXPECT_EQ(gemm.gemm().report().families, 2);
    RecordProperty(dtype == DType::kF32 ? "f32" : "bf16", gemm.gemm().report().choices);
  }
}

#ifndef QUICKSILVER_CUDA_TWIN
// The shapes that matter, with the batches and times of the product. A CPU would take an hour.
TEST_F(CudaGemmRowTest, RowsOfAModelDoNotMix) {
  for (const bool fp8 : {false, true}) {
    for (const auto& [in, out] : {std::pair<int64_t, int64_t>{4096, 6144}, {12288, 4096}}) {
      CudaGemmOptions options;
      options.fp8_layers = fp8;
      GemmUnderTest gemm(options);
      const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(out, in, 4, 0.02f));
      ExpectRowsDoNotMix(gemm, *weight, RandomMatrix(2100, in, 3),
                         {1, 4, 8, 16, 32, 33, 64, 128, 200, 256, 500, 1024, 2048});
      const GemmPlansReport report = gemm.gemm().report();
      std::cout << gemm.gemm().name() << ": " << report.algorithms_refused << " of " << report.algorithms_tried
                << " algorithms refused, " << report.rows_refused << " batches in parts\n"
                << report.choices;
    }
  }
}
#endif

/// Multiplies the first rows of x by slices of a weight, into tiles that are wider than most of them.
void ExpectSlicesOfTheWhole(GemmUnderTest& gemm, const GemmWeight& weight, DType out_type) {
  const HostMatrix x = RandomMatrix(70, 256, 3);
  const HostMatrix whole = gemm.Multiply(x, weight, 0, out_type);
  const DeviceRows device_x(x, DType::kBf16);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 48}, {48, 128}, {176, 125}}) {
    for (const int64_t rows : {5, 32, 70}) {
      for (const int64_t width : {count, int64_t{144}}) {
        const DeviceRows out(rows, width, out_type);
        Matrix tile = out.view();
        tile.cols = count;
        CheckOk(gemm.gemm().MultiplyRows(TopRows(device_x.view(), rows), weight, first, tile));
        ASSERT_EQ(cudaStreamSynchronize(gemm.stream()), cudaSuccess);
        const HostMatrix got = out.Get();
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < count; ++c) {
            ASSERT_EQ(BitsOfFloat(got.at(r, c)), BitsOfFloat(whole.at(r, first + c)))
                << rows << " rows, row " << r << ", feature " << first + c << ", tile of " << width;
          }
        }
      }
    }
  }
}

TEST_F(CudaGemmRowTest, ASliceOfTheWeightHasTheBitsOfTheWhole) {
  for (const bool fp8 : {false, true}) {
    for (const DType out_type : {DType::kF32, DType::kBf16}) {
      GemmUnderTest gemm(SmallOptions(DType::kBf16, fp8));
      const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(301, 256, 4), WeightRole::kLayer);
      ExpectSlicesOfTheWhole(gemm, *weight, out_type);
    }
  }
}

TEST_F(CudaGemmRowTest, RecordedProductsGetAPlanOfTheirOwnAndRunAgain) {
  GemmUnderTest gemm(SmallOptions(DType::kBf16));
  const std::unique_ptr<GemmWeight> weight = gemm.Prepare(RandomMatrix(64, 128, 4));
  const HostMatrix x = RandomMatrix(20, 128, 3);
  const HostMatrix expected = gemm.Multiply(x, *weight);
  const DeviceRows device_x(x, DType::kBf16), out(20, 64, DType::kBf16);
  const int32_t tried = gemm.gemm().report().algorithms_tried;
  ASSERT_EQ(cudaStreamBeginCapture(gemm.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CheckOk(gemm.gemm().Multiply(device_x.view(), *weight, out.view()));
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(gemm.stream(), &graph), cudaSuccess);
  EXPECT_GT(gemm.gemm().report().algorithms_tried, tried);
  size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_LE(nodes, kOnTwin ? 1u : 2u);  // No copies; a device may add up what it has split.
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(exec, gemm.stream()), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(gemm.stream()), cudaSuccess);
  ExpectSameBits(out.Get(), expected);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace quicksilver
