#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/cuda_twin/kernel_support.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;

// D[m, n] = A^T B with A [k, m] and B [k, n], all by columns: the form of the project's products.
struct Case {
  cudaDataType_t input = CUDA_R_32F;
  cudaDataType_t output = CUDA_R_32F;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool scaled = false;
};

std::vector<unsigned char> Pack(const std::vector<float>& values, cudaDataType_t type) {
  std::vector<unsigned char> bytes;
  for (const float value : values) {
    if (type == CUDA_R_32F) {
      const auto* raw = reinterpret_cast<const unsigned char*>(&value);
      bytes.insert(bytes.end(), raw, raw + 4);
    } else if (type == CUDA_R_16BF) {
      const __nv_bfloat16 narrow(value);
      bytes.push_back(static_cast<unsigned char>(narrow.__x & 0xFF));
      bytes.push_back(static_cast<unsigned char>(narrow.__x >> 8));
    } else {
      bytes.push_back(__nv_fp8_e4m3(value).__x);
    }
  }
  return bytes;
}

// The value that is left of `value` in the type.
float Rounded(float value, cudaDataType_t type) {
  if (type == CUDA_R_32F) return value;
  return type == CUDA_R_16BF ? static_cast<float>(__nv_bfloat16(value)) : static_cast<float>(__nv_fp8_e4m3(value));
}

class CublasLtTest : public testing::Test {
 protected:
  CublasLtTest() {
    EXPECT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulPreferenceCreate(&preference_), CUBLAS_STATUS_SUCCESS);
    const uint64_t workspace = kWorkspace;
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                   sizeof workspace),
              CUBLAS_STATUS_SUCCESS);
  }
  ~CublasLtTest() override {
    cublasLtMatmulPreferenceDestroy(preference_);
    cublasLtDestroy(handle_);
    TwinDevice().Reset();
  }

  // Draws operands, and the reference in double.
  void Draw(const Case& c, uint32_t seed) {
    case_ = c;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto draw = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& v : values) v = Rounded(normal(random), c.input);
      return values;
    };
    a_ = draw(c.m * c.k);
    b_ = draw(c.n * c.k);
    a_scale_.assign(static_cast<size_t>(c.m), 1.0f);
    b_scale_.assign(static_cast<size_t>(c.n), 1.0f);
    if (c.scaled) {
      for (float& v : a_scale_) v = std::exp2(normal(random));
      for (float& v : b_scale_) v = std::exp2(normal(random));
    }
    reference_.assign(static_cast<size_t>(c.m * c.n), 0.0);
    for (int64_t n = 0; n < c.n; ++n) {
      for (int64_t m = 0; m < c.m; ++m) {
        double sum = 0.0;
        for (int64_t k = 0; k < c.k; ++k) sum += double{a_[m * c.k + k]} * double{b_[n * c.k + k]};
        reference_[n * c.m + m] = sum * double{a_scale_[m]} * double{b_scale_[n]};
      }
    }
  }

  void MakeDescriptors(const float* a_scale, const float* b_scale) {
    const Case& c = case_;
    ASSERT_EQ(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    Set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (c.scaled) {
      const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a_scale);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b_scale);
    }
    ASSERT_EQ(cublasLtMatrixLayoutCreate(&a_layout_, c.input, c.k, c.m, c.k), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutCreate(&b_layout_, c.input, c.k, c.n, c.k), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutCreate(&d_layout_, c.output, c.m, c.n, c.m), CUBLAS_STATUS_SUCCESS);
  }

  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value), CUBLAS_STATUS_SUCCESS);
  }

  void DestroyDescriptors() {
    cublasLtMatmulDescDestroy(operation_);
    for (cublasLtMatrixLayout_t layout : {a_layout_, b_layout_, d_layout_}) cublasLtMatrixLayoutDestroy(layout);
  }

  std::vector<cublasLtMatmulHeuristicResult_t> Advice() {
    std::vector<cublasLtMatmulHeuristicResult_t> results(8);
    int count = 0;
    EXPECT_EQ(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, a_layout_, b_layout_, d_layout_, d_layout_,
                                             preference_, 8, results.data(), &count),
              CUBLAS_STATUS_SUCCESS);
    results.resize(static_cast<size_t>(count));
    return results;
  }

  cublasStatus_t Multiply(const void* a, const void* b, void* d, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                          size_t workspace_bytes, cudaStream_t stream) {
    const float one = 1.0f;
    const float zero = 0.0f;
    return cublasLtMatmul(handle_, operation_, &one, a, a_layout_, b, b_layout_, &zero, d, d_layout_, d, d_layout_,
                          algorithm, workspace, workspace_bytes, stream);
  }

  // The product by every advised algorithm, as the bytes of the output.
  std::vector<std::vector<unsigned char>> Products() {
    const DeviceArray<unsigned char> a(Pack(a_, case_.input));
    const DeviceArray<unsigned char> b(Pack(b_, case_.input));
    const DeviceArray<float> a_scale(a_scale_);
    const DeviceArray<float> b_scale(b_scale_);
    const DeviceArray<unsigned char> workspace(kWorkspace);
    MakeDescriptors(a_scale.data(), b_scale.data());
    std::vector<std::vector<unsigned char>> products;
    for (const cublasLtMatmulHeuristicResult_t& advice : Advice()) {
      const DeviceArray<unsigned char> d(static_cast<size_t>(case_.m * case_.n) * (case_.output == CUDA_R_32F ? 4 : 2));
      EXPECT_EQ(Multiply(a.data(), b.data(), d.data(), &advice.algo, workspace.data(), kWorkspace, nullptr),
                CUBLAS_STATUS_SUCCESS);
      products.push_back(d.Values());
    }
    DestroyDescriptors();
    return products;
  }

  float Value(const std::vector<unsigned char>& bytes, size_t i) const {
    if (case_.output == CUDA_R_32F) {
      float value;
      std::memcpy(&value, &bytes[4 * i], 4);
      return value;
    }
    return __ushort_as_bfloat16(static_cast<uint16_t>(bytes[2 * i] | (bytes[2 * i + 1] << 8)));
  }

  static constexpr size_t kWorkspace = 1 << 22;

  Case case_;
  std::vector<float> a_, b_, a_scale_, b_scale_;
  std::vector<double> reference_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_layout_ = nullptr, b_layout_ = nullptr, d_layout_ = nullptr;
};

TEST_F(CublasLtTest, ProductsAgreeWithSumsInDouble) {
  const std::vector<Case> cases = {
      {CUDA_R_32F, CUDA_R_32F, 100, 7, 65},           {CUDA_R_32F, CUDA_R_32F, 1, 1, 4},
      {CUDA_R_16BF, CUDA_R_16BF, 130, 33, 64},        {CUDA_R_16BF, CUDA_R_32F, 64, 70, 128},
      {CUDA_R_8F_E4M3, CUDA_R_16BF, 48, 5, 96, true}, {CUDA_R_8F_E4M3, CUDA_R_32F, 16, 130, 32, false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << ", types " << c.input << ", "
                                    << c.output);
    Draw(c, 3);
    const auto products = Products();
    EXPECT_EQ(products.size(), 4u);
    for (const auto& product : products) {
      for (size_t i = 0; i < reference_.size(); ++i) {
        // Float sums of k unit terms; bf16 keeps 8 bits.
        const double scale = double{a_scale_[i % c.m]} * double{b_scale_[i / c.m]} * std::sqrt(double(c.k));
        const double bound = 1e-6 * scale * 4 + (c.output == CUDA_R_16BF ? std::fabs(reference_[i]) / 256 : 0.0);
        ASSERT_NEAR(Value(product, i), reference_[i], bound) << "element " << i;
      }
    }
  }
}

TEST_F(CublasLtTest, SplittingTheSumChangesBits) {
  Draw({CUDA_R_16BF, CUDA_R_32F, 64, 8, 512}, 5);
  const auto products = Products();  // Split, plain, plain with other tiles, stream-K.
  EXPECT_NE(products[0], products[1]);
  EXPECT_EQ(products[1], products[2]);
}

// What makes an algorithm useless for row invariance: the first column of few is not that of many.
TEST_F(CublasLtTest, OneAdvisedAlgorithmDependsOnTheNumberOfColumns) {
  std::vector<std::vector<std::vector<unsigned char>>> columns;
  std::vector<float> first_column;
  for (const int64_t n : {8, 65, 129}) {
    Draw({CUDA_R_16BF, CUDA_R_32F, 64, n, 512}, 5);
    if (first_column.empty()) first_column.assign(b_.begin(), b_.begin() + 512);
    std::copy(first_column.begin(), first_column.end(), b_.begin());
    auto products = Products();
    for (auto& product : products) product.resize(64 * 4);
    // As for many columns: stream-K, plain, plain, split.
    if (n <= 64) products = {products[3], products[2], products[1], products[0]};
    columns.push_back(products);
  }
  EXPECT_NE(columns[0][0], columns[1][0]);
  for (const int i : {1, 2, 3}) {
    EXPECT_EQ(columns[0][i], columns[1][i]) << i;
    EXPECT_EQ(columns[0][i], columns[2][i]) << i;
  }
}

TEST_F(CublasLtTest, AProductOfAGraphRunsWhenTheGraphIsLaunched) {
  Draw({CUDA_R_32F, CUDA_R_32F, 4, 2, 8}, 1);
  const DeviceArray<float> a(a_);
  const DeviceArray<float> b(std::vector<float>(b_.size(), 0.0f));
  const DeviceArray<float> d(8);
  MakeDescriptors(nullptr, nullptr);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(Multiply(a.data(), b.data(), d.data(), nullptr, nullptr, 0, stream), CUBLAS_STATUS_SUCCESS);
  DestroyDescriptors();
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(b.data(), b_.data(), b_.size() * 4, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_TRUE(std::isnan(d.Values()[0]));
  ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
  const std::vector<float> values = d.Values();
  for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], reference_[i], 1e-5);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(CublasLtTest, WhatTheLibraryCannotDoIsRefused) {
  Draw({CUDA_R_16BF, CUDA_R_16BF, 64, 8, 64}, 1);
  MakeDescriptors(nullptr, nullptr);
  const DeviceArray<unsigned char> memory(1 << 16);
  const auto advice = Advice();
  ASSERT_GT(advice[0].workspaceSize, 0u);
  EXPECT_EQ(Multiply(memory.data(), memory.data(), memory.data(), &advice[0].algo, memory.data(),
                     advice[0].workspaceSize - 1, nullptr),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Multiply(memory.data() + 2, memory.data(), memory.data(), &advice[1].algo, nullptr, 0, nullptr),
            CUBLAS_STATUS_NOT_SUPPORTED);
  // More rows than the memory has: the device would fault.
  EXPECT_EQ(
      Multiply(memory.data() + (1 << 16) - 128, memory.data(), memory.data(), &advice[1].algo, nullptr, 0, nullptr),
      CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  TwinDevice().Reset();
  DestroyDescriptors();
  case_ = {CUDA_R_8F_E4M3, CUDA_R_16BF, 64, 8, 40};
  MakeDescriptors(nullptr, nullptr);
  std::vector<cublasLtMatmulHeuristicResult_t> results(1);
  int count = 0;
  EXPECT_EQ(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, a_layout_, b_layout_, d_layout_, d_layout_, preference_,
                                           1, results.data(), &count),
            CUBLAS_STATUS_NOT_SUPPORTED)
      << "k is no multiple of 16";
  DestroyDescriptors();
}

TEST_F(CublasLtTest, AttributesOfAlgorithmsAreReadAndWritten) {
  int ids[4];
  int count = 0;
  ASSERT_EQ(cublasLtMatmulAlgoGetIds(handle_, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF,
                                     CUDA_R_16BF, 4, ids, &count),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(count, 2);
  cublasLtMatmulAlgo_t algorithm;
  ASSERT_EQ(cublasLtMatmulAlgoInit(handle_, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF,
                                   CUDA_R_16BF, ids[0], &algorithm),
            CUBLAS_STATUS_SUCCESS);
  size_t written = 0;
  ASSERT_EQ(cublasLtMatmulAlgoCapGetAttribute(&algorithm, CUBLASLT_ALGO_CAP_TILE_IDS, nullptr, 0, &written),
            CUBLAS_STATUS_SUCCESS);
  std::vector<uint32_t> tiles(written / sizeof(uint32_t));
  ASSERT_EQ(cublasLtMatmulAlgoCapGetAttribute(&algorithm, CUBLASLT_ALGO_CAP_TILE_IDS, tiles.data(), written, &written),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(tiles.size(), 2u);
  const int32_t splits = 3;
  ASSERT_EQ(cublasLtMatmulAlgoConfigSetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits),
            CUBLAS_STATUS_SUCCESS);
  int32_t found = 0;
  ASSERT_EQ(
      cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &found, sizeof found, &written),
      CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(found, 3);
}

}  // namespace
}  // namespace quicksilver
