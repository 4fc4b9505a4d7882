#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/candidates.h"
#include "tests/support/random_matrix.h"

namespace quicksilver {

/// Device memory with the bytes of `values`.
template <typename T>
class DeviceCopy {
 public:
  explicit DeviceCopy(const std::vector<T>& values) : count_(values.size()) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(count_, 1) * sizeof(T)), cudaSuccess);
    Set(values);
  }
  ~DeviceCopy() { cudaFree(data_); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;

  T* data() const { return data_; }

  void Set(const std::vector<T>& values) const {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  std::vector<T> Get() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

struct CandidatesCase {
  HostMatrix logits;  ///< [R, V/tp]
  VocabularyShard shard;
  std::vector<CandidateRequest> requests;
  int32_t top_count = 0;
  std::vector<TokenBias> biases = {};
  std::vector<float> history = {};  ///< [slots, V/tp]
};

struct CandidatesOutput {
  std::vector<Candidate> candidates;
  std::vector<TopLogit> top;   ///< [requests, top_count]
  std::vector<float> history;  ///< Afterwards.
};

/// A tile holds at least 1,024 columns.
inline constexpr size_t kOnePartTiles = 1;

/// A product that copies logits, [R, columns] on the device.
LogitsProduct CopyOfLogits(const float* logits, int64_t columns, cudaStream_t stream);

/// RunCandidates() on logits that are given, in a workspace that is just large enough.
CandidatesOutput RunCandidatesOn(const CandidatesCase& c, size_t tile_bytes = kLogitsTileBytes);

/// What the reference says, request by request, so that one row's NaN reaches no other through a product.
CandidatesOutput CandidatesReference(const CandidatesCase& c);

/// Every option but biases and history, in turn.
std::vector<CandidateRequest> MixedRequests(int32_t count, int32_t rows, int32_t first_id, int32_t ids);

/// Gives requests of the case biases (some of which forbid), history and ids that are asked for, in turn.
void AddTables(CandidatesCase& c);

bool SameBits(const Candidate& a, const Candidate& b);
bool SameBits(const CandidatesOutput& a, const CandidatesOutput& b);

}  // namespace quicksilver
