#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe_product.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"

// Experts in float, a thread an output column: exact products, summed in the order of the columns.
namespace quicksilver::moe {
namespace {

constexpr int kThreads = 64;  // Columns of a block.
constexpr int kRows = 8;      // At a time.
constexpr int kDepth = 32;    // Columns of rows and weights in shared memory.
constexpr int kPitch = kDepth + 1;

/// `kMatrices` rows of weights for every column: gate and up, or down alone.
template <int kMatrices>
struct Shared {
  float weights[kMatrices][kThreads * kPitch];
  float rows[kRows * kDepth];
};

template <int kMatrices>
__device__ __forceinline__ void LoadTiles(const Products<float>& p, const float* weights, const int32_t* list,
                                          int32_t rows, int32_t depth_begin, Shared<kMatrices>* shared) {
  const int32_t first_column = static_cast<int32_t>(blockIdx.x) * kThreads;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kMatrices * kThreads * kDepth; i += kThreads) {
    const int32_t matrix = i / (kThreads * kDepth), column = i / kDepth % kThreads, d = i % kDepth;
    const bool valid = first_column + column < p.columns && depth_begin + d < p.depth;
    const int64_t row = int64_t{matrix} * p.columns + first_column + column;
    shared->weights[matrix][column * kPitch + d] = valid ? weights[row * p.depth + depth_begin + d] : 0.0f;
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kRows * kDepth; i += kThreads) {
    const int32_t r = i / kDepth, d = i % kDepth;
    const bool valid = r < rows && depth_begin + d < p.depth;
    shared->rows[i] = valid ? p.rows[list[r] / p.choices_a_row * p.row_stride + depth_begin + d] : 0.0f;
  }
}

// blockIdx.x: columns. blockIdx.y: the expert, whose rows the block takes kRows at a time.
template <int kMatrices>
__global__ void __launch_bounds__(kThreads) ExpertFloatKernel(Products<float> p) {
  DependencyWait();
  DependencyLaunch();
  auto* const shared = reinterpret_cast<Shared<kMatrices>*>(SharedMemory());
  const int32_t column = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  const int32_t count = p.counts[blockIdx.y];
  const float* const weights = p.weights + int64_t{blockIdx.y} * p.matrix_rows * p.depth;
  for (int32_t first = 0; first < count; first += kRows) {
    const int32_t* const list = p.lists + int64_t{blockIdx.y} * p.list_stride + first;
    const int32_t rows = min(kRows, count - first);
    float sums[kMatrices][kRows] = {};
    for (int32_t depth_begin = 0; depth_begin < p.depth; depth_begin += kDepth) {
      __syncthreads();
      LoadTiles(p, weights, list, rows, depth_begin, shared);
      __syncthreads();
#pragma unroll 4
      for (int32_t d = 0; d < kDepth; ++d) {
#pragma unroll
        for (int m = 0; m < kMatrices; ++m) {
          const float weight = shared->weights[m][threadIdx.x * kPitch + d];
#pragma unroll
          for (int r = 0; r < kRows; ++r) sums[m][r] = __fmaf_rn(shared->rows[r * kDepth + d], weight, sums[m][r]);
        }
      }
    }
    if (column >= p.columns) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float value = sums[0][r];
      if constexpr (kMatrices == 2) value = __fmul_rn(Activated(p.activation, value), sums[1][r]);
      if (r < rows) p.out[int64_t{list[r]} * p.out_stride + column] = value;
    }
  }
}

template <int kMatrices>
cudaError_t Run(const Products<float>& products, int32_t experts, cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>((products.columns + kThreads - 1) / kThreads),
                                          static_cast<unsigned int>(experts)),
                             .block = dim3(kThreads),
                             .shared_bytes = sizeof(Shared<kMatrices>),
                             .stream = stream,
                             .overlap = true};
  return Launch(ExpertFloatKernel<kMatrices>, shape, products);
}

}  // namespace

cudaError_t LaunchFloat(const ExpertProblem& problem, bool gated, cudaStream_t stream) {
  if (gated) return Run<2>(GateUpProducts<float>(problem), problem.shape.count, stream);
  return Run<1>(DownProducts<float>(problem), problem.shape.count, stream);
}

}  // namespace quicksilver::moe
