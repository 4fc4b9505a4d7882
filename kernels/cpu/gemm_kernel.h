#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <vector>

#include "kernels/tensor.h"

namespace quicksilver {

/// What tiles, weights and products are made of: floats; bf16, summed in float; or tiles of u8 and weights of s8,
/// summed exactly in s32.
enum class GemmArithmetic : uint8_t { kF32, kBf16, kInt8 };

/// Of a tile and of a weight, in bytes.
constexpr int64_t GemmElementBytes(GemmArithmetic arithmetic) {
  return arithmetic == GemmArithmetic::kF32 ? 4 : arithmetic == GemmArithmetic::kBf16 ? 2 : 1;
}

/// The processor that oneDNN finds, and runs on.
const dnnl::engine& GemmEngine();

/// oneDNN's product of one tile with one panel of a weight: [tile_rows, in] times [in, cols], on the thread that calls.
/// The constructor throws dnnl::error where oneDNN has no such product.
class GemmKernel {
 public:
  GemmKernel(GemmArithmetic arithmetic, int64_t tile_rows, int64_t in, int64_t cols, int32_t threads);

  /// The layout of a panel.
  const dnnl::memory::desc& weights() const { return weights_; }

  /// plain: [cols, in] of the kernel's elements.
  void Reorder(void* plain, dnnl::memory weights) const;

  /// Whether equal rows give equal bits wherever they stand in the tile, and sums of bytes are exact, which they are
  /// not on processors whose instructions add up pairs of them in 16 bits.
  bool KeepsPromises() const;

  /// products: [tile_rows, cols] floats, or 32-bit integers of kInt8. Each thread in [0, threads) for itself.
  dnnl_status_t Run(int32_t thread, const void* tile, const dnnl::memory& weights, void* products) const;

 private:
  /// What one thread needs for itself.
  struct Lane {
    dnnl::stream stream;
    dnnl::memory tile;
    dnnl::memory products;
    dnnl::memory scratchpad;
  };

  GemmArithmetic arithmetic_;
  int64_t tile_rows_;
  int64_t in_;
  int64_t cols_;
  dnnl::matmul primitive_;
  dnnl::memory::desc weights_;
  std::vector<Lane> lanes_;
};

}  // namespace quicksilver
