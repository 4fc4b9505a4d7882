#include <cuda_bf16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe_product.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"

// Experts in bf16. Few rows go to an expert, and what takes time is to read its weights: so the weights are the 16 rows
// of MmaBf16 and the batch's rows its 8 columns, and a block keeps as many weights under way as shared memory holds.
// Every product is one chain of sums in the order of the columns, whatever the tile.
namespace quicksilver::moe {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpFeatures = 32;                         // Weight rows of a warp: two tiles of 16.
constexpr int kFeatures = kThreads / 32 * kWarpFeatures;  // Of a block.
constexpr int kDepth = 64;                                // Columns of a stage: 128 bytes a row, eight pieces.
constexpr int kPieces = kDepth / 8;
constexpr int kWeightBytes = kFeatures * kDepth * 2;
constexpr int kTileRowsMax = 128;
constexpr int kListBytes = 2 * kTileRowsMax * 4;  // Choices and the rows they read.

/// `kRows` rows of the batch at a time.
template <int kRows>
struct Tile {
  static constexpr int kStages = kRows > 64 ? 3 : 4;
  static constexpr int kStageBytes = kWeightBytes + kRows * kDepth * 2;
  static constexpr int kColumnTiles = kRows / 8;
};
constexpr int kStagesBytes = 4 * Tile<64>::kStageBytes;
static_assert(3 * Tile<128>::kStageBytes <= kStagesBytes);
constexpr int kSharedBytes = kListBytes + kStagesBytes;

/// Where piece `piece` of a row lies in its tile. Eight rows of one piece, which is what ldmatrix reads at once, lie in
/// eight different groups of banks.
__device__ __forceinline__ int32_t PieceOffset(int32_t row, int32_t piece) {
  return row * kDepth * 2 + ((piece ^ (row & 7)) << 4);
}

struct Lists {
  int32_t* choices;  // -1: none.
  int32_t* rows;     // Where the row that is read begins, in elements; -1: none.
};

/// The weight row behind row `r` of the block's tile, or -1. Gated: of a warp's two tiles one is gates and the other
/// the ups of the same columns, so that one thread has both.
template <bool kGated>
__device__ __forceinline__ int32_t WeightRow(int32_t r, int32_t columns) {
  if constexpr (kGated) {
    const int32_t column = static_cast<int32_t>(blockIdx.x) * (kFeatures / 2) + r / kWarpFeatures * 16 + r % 16;
    return column < columns ? r / 16 % 2 * columns + column : -1;
  } else {
    const int32_t column = static_cast<int32_t>(blockIdx.x) * kFeatures + r;
    return column < columns ? column : -1;
  }
}

template <bool kGated, int kRows>
__device__ __forceinline__ void LoadStage(const Products<__nv_bfloat16>& p, const __nv_bfloat16* weights,
                                          const Lists& lists, int32_t step, unsigned char* stage) {
  const int32_t piece = static_cast<int32_t>(threadIdx.x) % kPieces;
  const int32_t column = step * kDepth + piece * 8;
  const bool inside = column < p.depth;
#pragma unroll
  for (int32_t i = 0; i < kFeatures * kPieces / kThreads; ++i) {
    const int32_t r = static_cast<int32_t>(threadIdx.x) / kPieces + i * (kThreads / kPieces);
    const int32_t row = WeightRow<kGated>(r, p.columns);
    const bool valid = inside && row >= 0;
    CopyAsync16(stage + PieceOffset(r, piece), weights + (valid ? row * p.depth + column : 0), valid);
  }
#pragma unroll
  for (int32_t i = 0; i < (kRows * kPieces + kThreads - 1) / kThreads; ++i) {
    const int32_t r = static_cast<int32_t>(threadIdx.x) / kPieces + i * (kThreads / kPieces);
    if (r >= kRows) break;
    const int32_t row = lists.rows[r];
    const bool valid = inside && row >= 0;
    CopyAsync16(stage + kWeightBytes + PieceOffset(r, piece), p.rows + (valid ? row + column : 0), valid);
  }
}

template <int kRows>
using Sums = float[2][Tile<kRows>::kColumnTiles][4];

/// Adds the products of one stage.
template <int kRows>
__device__ __forceinline__ void MultiplyStage(const unsigned char* stage, Sums<kRows>& sums) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
  const unsigned char* const rows = stage + kWeightBytes;
  uint32_t narrow[4];  // kRows = 8: the fragments of two steps.
  // Unrolled, the sums of the largest tile would not stay in registers.
#pragma unroll(kRows > 64 ? 1 : kDepth / 16)
  for (int32_t k = 0; k < kDepth / 16; ++k) {
    uint32_t a[2][4];
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      LoadMatrix4(a[half], stage + PieceOffset(warp * kWarpFeatures + half * 16 + lane % 16, 2 * k + lane / 16));
    }
    if constexpr (kRows == 8) {
      if (k % 2 == 0) LoadMatrix4(narrow, rows + PieceOffset(lane & 7, 2 * k + (lane >> 3)));
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        MmaBf16(sums[half][0], a[half], {narrow[k % 2 * 2], narrow[k % 2 * 2 + 1]});
      }
    } else {
#pragma unroll
      for (int32_t n = 0; n < Tile<kRows>::kColumnTiles; n += 2) {
        uint32_t b[4];
        LoadMatrix4(b, rows + PieceOffset(n * 8 + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          MmaBf16(sums[half][n], a[half], {b[0], b[1]});
          MmaBf16(sums[half][n + 1], a[half], {b[2], b[3]});
        }
      }
    }
  }
}

/// Rounds the sums, goes through shared memory and writes whole pieces of the rows.
template <bool kGated, int kRows>
__device__ __forceinline__ void StoreTile(const Products<__nv_bfloat16>& p, const Lists& lists, const Sums<kRows>& sums,
                                          __nv_bfloat16* tile) {
  constexpr int32_t kColumns = kGated ? kFeatures / 2 : kFeatures;
  constexpr int32_t kPitch = kColumns + 8;
  static_assert(kRows * kPitch * 2 <= kStagesBytes);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
#pragma unroll
  for (int32_t n = 0; n < Tile<kRows>::kColumnTiles; ++n) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t row = n * 8 + lane % 4 * 2 + i % 2, feature = lane / 4 + i / 2 * 8;
      if constexpr (kGated) {
        const float value = __fmul_rn(Activated(p.activation, RoundedTo<__nv_bfloat16>(sums[0][n][i])),
                                      RoundedTo<__nv_bfloat16>(sums[1][n][i]));
        tile[row * kPitch + warp * 16 + feature] = __float2bfloat16_rn(value);
      } else {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          tile[row * kPitch + warp * kWarpFeatures + half * 16 + feature] = __float2bfloat16_rn(sums[half][n][i]);
        }
      }
    }
  }
  __syncthreads();
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kRows * kColumns / 8; i += kThreads) {
    const int32_t row = i / (kColumns / 8), piece = i % (kColumns / 8), choice = lists.choices[row];
    const int32_t column = static_cast<int32_t>(blockIdx.x) * kColumns + piece * 8;
    if (choice < 0 || column >= p.out_stride) continue;
    *reinterpret_cast<uint4*>(p.out + int64_t{choice} * p.out_stride + column) =
        *reinterpret_cast<const uint4*>(tile + row * kPitch + piece * 8);
  }
}

/// Rows [first, first + kRows) of the expert's list, or as many as there are.
template <bool kGated, int kRows>
__device__ __forceinline__ void RunTile(const Products<__nv_bfloat16>& p, int32_t first, int32_t count) {
  constexpr int32_t kStages = Tile<kRows>::kStages, kStageBytes = Tile<kRows>::kStageBytes;
  auto* const choices = reinterpret_cast<int32_t*>(SharedMemory());
  const Lists lists = {choices, choices + kTileRowsMax};
  unsigned char* const stages = SharedMemory() + kListBytes;
  const __nv_bfloat16* const weights = p.weights + int64_t{blockIdx.y} * p.matrix_rows * p.depth;
  const int32_t steps = (p.depth + kDepth - 1) / kDepth;
  __syncthreads();  // The tile before has been stored.
  for (int32_t r = static_cast<int32_t>(threadIdx.x); r < kRows; r += kThreads) {
    const int32_t choice = first + r < count ? p.lists[int64_t{blockIdx.y} * p.list_stride + first + r] : -1;
    lists.choices[r] = choice;
    lists.rows[r] = choice < 0 ? -1 : choice / p.choices_a_row * static_cast<int32_t>(p.row_stride);
  }
  __syncthreads();
  Sums<kRows> sums = {};
#pragma unroll
  for (int32_t s = 0; s < kStages - 1; ++s) {
    if (s < steps) LoadStage<kGated, kRows>(p, weights, lists, s, stages + s * kStageBytes);
    CopyAsyncCommit();
  }
  for (int32_t step = 0; step < steps; ++step) {
    CopyAsyncWait<kStages - 2>();
    __syncthreads();
    const int32_t next = step + kStages - 1;
    if (next < steps) LoadStage<kGated, kRows>(p, weights, lists, next, stages + next % kStages * kStageBytes);
    CopyAsyncCommit();
    MultiplyStage<kRows>(stages + step % kStages * kStageBytes, sums);
  }
  CopyAsyncWait<0>();
  __syncthreads();
  StoreTile<kGated, kRows>(p, lists, sums, reinterpret_cast<__nv_bfloat16*>(stages));
}

// blockIdx.x: columns. blockIdx.y: the expert, whose rows the block takes in tiles that suit their number.
template <bool kGated>
__global__ void __launch_bounds__(kThreads, 2) ExpertTensorCoreKernel(Products<__nv_bfloat16> p) {
  DependencyWait();
  DependencyLaunch();
  const int32_t count = p.counts[blockIdx.y];
  for (int32_t first = 0; first < count; first += kTileRowsMax) {
    const int32_t left = count - first;
    if (left <= 8) {
      RunTile<kGated, 8>(p, first, count);
    } else if (left <= 16) {
      RunTile<kGated, 16>(p, first, count);
    } else if (left <= 32) {
      RunTile<kGated, 32>(p, first, count);
    } else if (left <= 64) {
      RunTile<kGated, 64>(p, first, count);
    } else {
      RunTile<kGated, 128>(p, first, count);
    }
  }
}

}  // namespace

cudaError_t LaunchTensorCore(const ExpertProblem& problem, bool gated, cudaStream_t stream) {
  const Products<__nv_bfloat16> products =
      gated ? GateUpProducts<__nv_bfloat16>(problem) : DownProducts<__nv_bfloat16>(problem);
  // Places within the rows and within one matrix are counted in 32 bits.
  const int64_t rows = problem.x.rows * (gated ? 1 : problem.k);
  if (rows * products.row_stride > INT32_MAX || int64_t{products.matrix_rows} * products.depth > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  const int32_t columns = gated ? kFeatures / 2 : kFeatures;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>((products.columns + columns - 1) / columns),
                                          static_cast<unsigned int>(problem.shape.count)),
                             .block = dim3(kThreads),
                             .shared_bytes = kSharedBytes,
                             .stream = stream,
                             .overlap = true};
  return gated ? Launch(ExpertTensorCoreKernel<true>, shape, products)
               : Launch(ExpertTensorCoreKernel<false>, shape, products);
}

}  // namespace quicksilver::moe
