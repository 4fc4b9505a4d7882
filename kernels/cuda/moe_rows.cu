#include <cuda_bf16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe_product.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int kListThreads = 256;
constexpr int kListWarps = kListThreads / 32;
constexpr int kSumThreads = 128;
template <typename T>
inline constexpr int kRun = 16 / sizeof(T);

// blockIdx.x: the expert, counted from the first that is held. A thread looks at a row at a time.
__global__ void __launch_bounds__(kListThreads)
    ListExpertsKernel(const int32_t* experts, int32_t rows, int32_t k, int32_t first_expert, int32_t* counts,
                      int32_t* lists) {
  DependencyWait();
  DependencyLaunch();
  auto* const found = reinterpret_cast<int32_t*>(SharedMemory());  // By each warp.
  const int32_t expert = first_expert + static_cast<int32_t>(blockIdx.x);
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  int32_t* const list = lists + int64_t{blockIdx.x} * rows;
  int32_t count = 0;
  for (int32_t begin = 0; begin < rows; begin += kListThreads) {
    const int32_t row = begin + static_cast<int32_t>(threadIdx.x);
    int32_t choice = -1;
    for (int32_t j = row * k; row < rows && j < (row + 1) * k; ++j) {
      if (experts[j] == expert) choice = j;
    }
    const unsigned int mask = __ballot_sync(0xFFFFFFFFu, choice >= 0);
    if (lane == 0) found[warp] = __popc(mask);
    __syncthreads();
    int32_t place = count + __popc(mask & ((1u << lane) - 1u));
    for (int32_t w = 0; w < kListWarps; ++w) {
      if (w < warp) place += found[w];
      count += found[w];
    }
    if (choice >= 0) list[place] = choice;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

/// What SumExpertsKernel adds up.
template <typename T>
struct Outputs {
  const T* outputs;
  int64_t stride;
  const int32_t* experts;
  const float* weights;
  int32_t k;
  int32_t first_expert;
  int32_t count;
};

// A row is blockIdx.x; blocks along y share its columns.
template <typename T, bool kAdd>
__global__ void __launch_bounds__(kSumThreads)
    SumExpertsKernel(Outputs<T> from, int64_t cols, T* out, int64_t out_stride) {
  DependencyWait();
  DependencyLaunch();
  const int64_t n = blockIdx.x, c = (int64_t{blockIdx.y} * kSumThreads + threadIdx.x) * kRun<T>;
  if (c >= cols) return;
  float sums[kRun<T>] = {};
  for (int64_t j = n * from.k; j < (n + 1) * from.k; ++j) {
    const int32_t expert = from.experts[j];
    if (expert < from.first_expert || expert >= from.first_expert + from.count) continue;
    float v[kRun<T>];
    LoadRun(from.outputs + j * from.stride + c, cols - c, v);
    const float weight = from.weights[j];
#pragma unroll
    for (int i = 0; i < kRun<T>; ++i) sums[i] = __fmaf_rn(weight, v[i], sums[i]);
  }
  if constexpr (kAdd) {
    float before[kRun<T>];
    LoadRun(out + n * out_stride + c, cols - c, before);
#pragma unroll
    for (int i = 0; i < kRun<T>; ++i) sums[i] = __fadd_rn(before[i], RoundedTo<T>(sums[i]));
  }
  StoreRun(out + n * out_stride + c, cols - c, sums);
}

template <typename T>
cudaError_t Sum(const ExpertProblem& p, cudaStream_t stream) {
  const int64_t columns = int64_t{kSumThreads} * kRun<T>;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>(p.out.rows),
                                          static_cast<unsigned int>((p.out.cols + columns - 1) / columns)),
                             .block = dim3(kSumThreads),
                             .stream = stream,
                             .overlap = true};
  const Outputs<T> from = {.outputs = static_cast<const T*>(p.outputs),
                           .stride = ExpertColumns(p.shape.hidden, p.out.dtype),
                           .experts = p.experts,
                           .weights = p.expert_weights,
                           .k = p.k,
                           .first_expert = p.shape.first,
                           .count = p.shape.count};
  T* const out = static_cast<T*>(p.out.data);
  if (p.add) return Launch(SumExpertsKernel<T, true>, shape, from, p.out.cols, out, p.out.stride);
  return Launch(SumExpertsKernel<T, false>, shape, from, p.out.cols, out, p.out.stride);
}

}  // namespace

cudaError_t LaunchListExperts(const ExpertProblem& problem, cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>(problem.shape.count)),
                             .block = dim3(kListThreads),
                             .shared_bytes = kListWarps * sizeof(int32_t),
                             .stream = stream,
                             .overlap = true};
  return Launch(ListExpertsKernel, shape, problem.experts, static_cast<int32_t>(problem.x.rows), problem.k,
                problem.shape.first, problem.counts, problem.lists);
}

cudaError_t LaunchExpertGateUp(const ExpertProblem& problem, cudaStream_t stream) {
  return problem.out.dtype == DType::kF32 ? moe::LaunchFloat(problem, /*gated=*/true, stream)
                                          : moe::LaunchTensorCore(problem, /*gated=*/true, stream);
}

cudaError_t LaunchExpertDown(const ExpertProblem& problem, cudaStream_t stream) {
  return problem.out.dtype == DType::kF32 ? moe::LaunchFloat(problem, /*gated=*/false, stream)
                                          : moe::LaunchTensorCore(problem, /*gated=*/false, stream);
}

cudaError_t LaunchSumExperts(const ExpertProblem& problem, cudaStream_t stream) {
  return problem.out.dtype == DType::kF32 ? Sum<float>(problem, stream) : Sum<__nv_bfloat16>(problem, stream);
}

}  // namespace quicksilver
