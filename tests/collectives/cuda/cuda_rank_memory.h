#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "common/check.h"
#include "tests/collectives/rank_memory.h"

namespace quicksilver {

/// Memory of the current device, and the stream that a rank works on.
class CudaRankMemory final : public RankMemory {
 public:
  CudaRankMemory() {
    CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
#ifndef QUICKSILVER_CUDA_TWIN
    NewBlock(kArenaBytes);
#endif
  }
  ~CudaRankMemory() override {
    for (void* block : blocks_) cudaFree(block);
    cudaStreamDestroy(stream_);
  }

  cudaStream_t stream() const { return stream_; }

  void* Allocate(size_t bytes) override {
#ifdef QUICKSILVER_CUDA_TWIN
    return NewBlock(bytes);  // The twin watches the ends of each.
#else
    // An allocation may wait for the device, and so for a kernel that waits for this very rank: one, at first.
    CHECK(used_ + bytes <= kArenaBytes);
    auto* place = static_cast<std::byte*>(blocks_[0]) + used_;
    used_ += (bytes + 255) / 256 * 256;
    return place;
#endif
  }
  void Write(const void* host, void* to, size_t bytes) override { Copy(to, host, bytes, cudaMemcpyHostToDevice); }
  void Read(const void* from, void* host, size_t bytes) override { Copy(host, from, bytes, cudaMemcpyDeviceToHost); }

 private:
  static constexpr size_t kArenaBytes = 64 << 20;

  void* NewBlock(size_t bytes) {
    void* block = nullptr;
    CHECK(cudaMalloc(&block, bytes) == cudaSuccess);
    CHECK(cudaMemsetAsync(block, 0, bytes, stream_) == cudaSuccess);
    blocks_.push_back(block);
    return block;
  }
  void Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream_) == cudaSuccess);
  }

  cudaStream_t stream_ = nullptr;
  std::vector<void*> blocks_;
  [[maybe_unused]] size_t used_ = 0;
};

}  // namespace quicksilver
