#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "common/check.h"
#include "tests/collectives/rank_memory.h"

namespace quicksilver {

/// Memory of the current device, and the stream that a rank works on.
class CudaRankMemory final : public RankMemory {
 public:
  CudaRankMemory() { CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess); }
  ~CudaRankMemory() override {
    for (void* block : blocks_) cudaFree(block);
    cudaStreamDestroy(stream_);
  }

  cudaStream_t stream() const { return stream_; }

  void* Allocate(size_t bytes) override {
    void* block = nullptr;
    CHECK(cudaMalloc(&block, bytes) == cudaSuccess);
    CHECK(cudaMemsetAsync(block, 0, bytes, stream_) == cudaSuccess);
    blocks_.push_back(block);
    return block;
  }
  void Write(const void* host, void* to, size_t bytes) override { Copy(to, host, bytes, cudaMemcpyHostToDevice); }
  void Read(const void* from, void* host, size_t bytes) override { Copy(host, from, bytes, cudaMemcpyDeviceToHost); }

 private:
  void Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream_) == cudaSuccess);
  }

  cudaStream_t stream_ = nullptr;
  std::vector<void*> blocks_;
};

}  // namespace quicksilver
