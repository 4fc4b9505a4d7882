#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/kernels/attention_case.h"

namespace quicksilver {

/// Device memory of a test.
class AttentionMemory {
 public:
  explicit AttentionMemory(size_t bytes) { EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), cudaSuccess); }
  template <typename T>
  explicit AttentionMemory(const std::vector<T>& values) : AttentionMemory(values.size() * sizeof(T)) {
    Fill(values);
  }
  AttentionMemory(AttentionMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  AttentionMemory& operator=(AttentionMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~AttentionMemory() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  template <typename T>
  void Fill(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  template <typename T>
  std::vector<T> Values(size_t count) const {
    std::vector<T> values(count);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

/// What is different between runs that must give the same bits.
struct RunSettings {
  attention::Split split = attention::Split::kAuto;
  size_t partial_bytes = size_t{8} << 20;
  int32_t multiprocessors = 3;
  int32_t rows_max = 0;      ///< At least: a captured step knows but an upper bound.
  int32_t padding_rows = 0;  ///< Rows at the end that belong to no segment.
  int64_t cache_gap = 0;     ///< Elements between the rows of the cache, and
  int64_t row_gap = 0;       ///< between those of q and out.
  uint32_t page_seed = 7;
};

/// A step's arrays, the cache filled.
struct AttentionStep {
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> page_table;
  HostMatrix q, keys, values;
  int32_t rows_max = 0, keys_max = 0;
};

/// The kernels over all sequences at once, on memory of its own. What is not a key of a sequence is NaN.
class AttentionRun {
 public:
  AttentionRun(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype,
               const RunSettings& settings);

  void Enqueue(cudaStream_t stream);

  /// The rows of all sequences, in order. Fails the test where anything else was written.
  HostMatrix Result() const;

  /// The next runs are those of a layer with another rule.
  void UseRule(const AttentionRule& rule) { shape_.rule = rule; }

  /// Overwrites what a run has left.
  void ForgetResult();

  /// Lets segment `s` end `rows` earlier, on the device alone.
  void DropRows(size_t s, int32_t rows);

 private:
  CudaAttentionOptions Options() const;
  std::vector<AttentionSegment> Segments() const;

  AttentionShape shape_;
  DType dtype_;
  RunSettings settings_;
  AttentionStep step_;
  int64_t rows_;
  AttentionMemory q_, out_, keys_, values_, page_table_, segments_, workspace_;
  CudaAttention attention_;
};

/// One such run.
HostMatrix RunKernels(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype,
                      const RunSettings& settings);

/// Why nothing can run here, or nothing.
std::string WhyNoDevice();

}  // namespace quicksilver
