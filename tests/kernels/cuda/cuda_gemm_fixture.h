#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/gemm_device.h"

namespace quicksilver {

inline void CheckOk(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }

#ifdef QUICKSILVER_CUDA_TWIN
inline constexpr bool kOnTwin = true;
#else
inline constexpr bool kOnTwin = false;
#endif

/// Tests that also run on a device. Without one they are skipped.
class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
  }
};

/// How far e4m3 products may be from exact ones, relative to the sum of their magnitudes: tensor cores align the
/// numbers that they add, and keep about 13 bits of the smaller ones.
inline constexpr double kE4m3SumError = kOnTwin ? 1e-6 : 0x1p-10;

/// Small enough to be tried out on a CPU.
inline CudaGemmOptions SmallOptions(DType activation, bool fp8 = false) {
  CudaGemmOptions options;
  options.activation = activation;
  options.fp8_layers = fp8;
  options.plans.small_rows = 32;
  options.plans.large_rows = 96;
  options.plans.workspace_bytes = size_t{1} << 20;
  options.plans.timed_runs = kOnTwin ? 0 : 2;
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

inline HostMatrix Product(const HostMatrix& x, const HostMatrix& weight) {
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

inline void ExpectNear(const HostMatrix& actual, const HostMatrix& expected, double relative, double absolute) {
  ASSERT_EQ(actual.values.size(), expected.values.size());
  for (size_t i = 0; i < actual.values.size(); ++i) {
    ASSERT_NEAR(actual.values[i], expected.values[i], relative * std::abs(expected.values[i]) + absolute)
        << "row " << static_cast<int64_t>(i) / actual.cols << ", column " << static_cast<int64_t>(i) % actual.cols;
  }
}

struct Size {
  int64_t rows, in, out;
};

/// Runs random choices of x's rows, as many as `counts` says, and expects the bits that they have all together.
inline void ExpectRowsDoNotMix(GemmUnderTest& gemm, const GemmWeight& weight, const HostMatrix& x,
                               const std::vector<int64_t>& counts) {
  const HostMatrix together = gemm.Multiply(x, weight);
  std::mt19937 generator(5);
  std::vector<int32_t> order(static_cast<size_t>(x.rows));
  std::iota(order.begin(), order.end(), 0);
  for (const int64_t rows : counts) {
    SCOPED_TRACE(absl::StrCat(rows, " rows"));
    std::shuffle(order.begin(), order.end(), generator);
    const std::vector<int32_t> some(order.begin(), order.begin() + rows);
    ExpectSameBits(gemm.Multiply(SelectRows(x, some), weight, rows % 2 == 0 ? 0 : 5), SelectRows(together, some));
  }
}

inline void ExpectRowsDoNotMix(GemmUnderTest& gemm, const GemmWeight& weight, int64_t in) {
  ExpectRowsDoNotMix(gemm, weight, RandomMatrix(130, in, 3), {1, 2, 7, 8, 9, 31, 32, 33, 64, 95, 96, 97, 129});
}

}  // namespace quicksilver
