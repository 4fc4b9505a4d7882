#include <cuda_bf16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe_kernels.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int kThreads = 256;
constexpr int kExpertsOfThread = kExpertsMax / kThreads;
constexpr float kMinusInfinity = -__builtin_huge_valf();

struct RouteShared {
  float biased[kExpertsMax];
  uint32_t keys[kExpertsMax];
  uint32_t group_keys[kExpertsMax / 2];
  float warps[kThreads / 32];
  int32_t chosen[kChosenExpertsMax];
  float weights[kChosenExpertsMax];
  int32_t segment;
};

/// Greater for better scores; 0 is left for what is not admitted. A NaN is the lowest score.
__device__ __forceinline__ uint32_t KeyOf(float score) {
  const float clean = score == score ? __fadd_rn(score, 0.0f) : kMinusInfinity;  // -0 becomes 0.
  const uint32_t bits = __float_as_uint(clean);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/// How many of `keys` come before number `i` in descending order, ties by number.
__device__ __forceinline__ int32_t PlaceOf(int32_t i, const uint32_t* keys, int32_t count) {
  const uint32_t key = keys[i];
  int32_t place = 0;
  for (int32_t other = 0; other < count; ++other) {
    place += keys[other] > key || (keys[other] == key && other < i) ? 1 : 0;
  }
  return place;
}

__device__ __forceinline__ float BlockMax(float value, float* shared) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, mask));
  __syncthreads();  // What the last reduction left has been read.
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % (kThreads / 32)];
#pragma unroll
  for (int mask = kThreads / 64; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, mask));
  return value;
}

/// Expert number i of a thread is i * kThreads + threadIdx.x.
struct Scores {
  float plain[kExpertsOfThread];
  float biased[kExpertsOfThread];
};

__device__ __forceinline__ int32_t ExpertOf(int i) { return i * kThreads + static_cast<int32_t>(threadIdx.x); }

template <typename T>
__device__ __forceinline__ void ScoreRow(const T* logits, const RoutingRule& rule, RouteShared* shared,
                                         Scores& scores) {
  float largest = kMinusInfinity, sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kExpertsOfThread; ++i) {
    scores.plain[i] = ExpertOf(i) < rule.experts ? ToFloat(logits[ExpertOf(i)]) : kMinusInfinity;
    largest = fmaxf(largest, scores.plain[i]);
  }
  if (rule.score == RoutingRule::Score::kSoftmax) {
    largest = BlockMax(largest, shared->warps);
#pragma unroll
    for (int i = 0; i < kExpertsOfThread; ++i) {
      scores.plain[i] = ExpertOf(i) < rule.experts ? expf(__fadd_rn(scores.plain[i], -largest)) : 0.0f;
      sum = __fadd_rn(sum, scores.plain[i]);
    }
    __syncthreads();  // What the last reduction left has been read.
    sum = BlockSum(sum, shared->warps);
#pragma unroll
    for (int i = 0; i < kExpertsOfThread; ++i) scores.plain[i] = __fdiv_rn(scores.plain[i], sum);
  } else {
#pragma unroll
    for (int i = 0; i < kExpertsOfThread; ++i) {
      scores.plain[i] = __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-scores.plain[i])));
    }
  }
#pragma unroll
  for (int i = 0; i < kExpertsOfThread; ++i) {
    const bool biased = rule.bias != nullptr && ExpertOf(i) < rule.experts;
    scores.biased[i] = biased ? __fadd_rn(scores.plain[i], rule.bias[ExpertOf(i)]) : scores.plain[i];
  }
}

/// Takes the keys of experts of losing groups away.
__device__ __forceinline__ void KeepGroups(const RoutingRule& rule, RouteShared* shared) {
  const int32_t size = rule.experts / rule.groups;
  for (int32_t g = static_cast<int32_t>(threadIdx.x); g < rule.groups; g += kThreads) {
    float best = kMinusInfinity, second = kMinusInfinity;
    for (int32_t e = g * size; e < (g + 1) * size; ++e) {
      const float score = fmaxf(shared->biased[e], kMinusInfinity);  // A NaN is the lowest.
      second = fmaxf(second, fminf(best, score));
      best = fmaxf(best, score);
    }
    shared->group_keys[g] = KeyOf(__fadd_rn(best, second));
  }
  __syncthreads();
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < rule.experts; e += kThreads) {
    if (PlaceOf(e / size, shared->group_keys, rule.groups) >= rule.groups_kept) shared->keys[e] = 0;
  }
}

/// Bit i: expert number i of this thread is admitted by the pool of rows [first, end).
template <typename T>
__device__ __forceinline__ uint32_t AdmittedByPool(const T* logits, int64_t stride, int32_t first, int32_t end,
                                                   const RoutingRule& rule, RouteShared* shared) {
  uint32_t best[kExpertsOfThread] = {};
  for (int32_t row = first; row < end; ++row) {
    Scores scores;
    ScoreRow(logits + row * stride, rule, shared, scores);
#pragma unroll
    for (int i = 0; i < kExpertsOfThread; ++i) best[i] = max(best[i], KeyOf(scores.biased[i]));
  }
#pragma unroll
  for (int i = 0; i < kExpertsOfThread; ++i) {
    if (ExpertOf(i) < rule.experts) shared->keys[ExpertOf(i)] = best[i];
  }
  __syncthreads();
  uint32_t admitted = 0;
#pragma unroll
  for (int i = 0; i < kExpertsOfThread; ++i) {
    if (ExpertOf(i) < rule.experts && PlaceOf(ExpertOf(i), shared->keys, rule.experts) < rule.pool_experts) {
      admitted |= 1u << i;
    }
  }
  __syncthreads();
  return admitted;
}

template <typename T>
struct RouteArguments {
  const AttentionSegment* segments;
  int32_t segments_count;
  const T* logits;
  int64_t stride;
  RoutingRule rule;
  bool round_to_bf16;
  int32_t* experts;
  float* weights;
};

/// Writes the row's choices, which stand in shared memory.
__device__ __forceinline__ void WriteChoices(const RoutingRule& rule, bool round_to_bf16, const RouteShared* shared,
                                             int32_t* experts, float* weights) {
  const int32_t j = static_cast<int32_t>(threadIdx.x);
  if (j >= rule.chosen) return;
  float sum = 0.0f;
  for (int32_t i = 0; i < rule.chosen; ++i) sum = __fadd_rn(sum, shared->weights[i]);
  float weight = shared->weights[j];
  if (rule.normalise) weight = __fdiv_rn(weight, __fadd_rn(sum, 1e-20f));
  weight = __fmul_rn(weight, rule.scale);
  if (rule.expert_scale != nullptr) weight = __fmul_rn(weight, rule.expert_scale[shared->chosen[j]]);
  experts[j] = shared->chosen[j];
  weights[j] = rule.round_weights && round_to_bf16 ? RoundedTo<__nv_bfloat16>(weight) : weight;
}

// A block a row. Whoever wants to know how many are better than it counts them: no order of threads shows.
template <typename T>
__global__ void __launch_bounds__(kThreads) RouteKernel(RouteArguments<T> a) {
  DependencyWait();
  DependencyLaunch();
  auto* const shared = reinterpret_cast<RouteShared*>(SharedMemory());
  const RoutingRule& rule = a.rule;
  const int32_t n = static_cast<int32_t>(blockIdx.x);
  int32_t* const experts = a.experts + int64_t{n} * rule.chosen;
  float* const weights = a.weights + int64_t{n} * rule.chosen;
  if (threadIdx.x == 0) shared->segment = -1;
  __syncthreads();
  for (int32_t s = static_cast<int32_t>(threadIdx.x); s < a.segments_count; s += kThreads) {
    if (n >= a.segments[s].first_row && n < a.segments[s].first_row + a.segments[s].rows) shared->segment = s;
  }
  __syncthreads();
  if (shared->segment < 0) {
    if (threadIdx.x < static_cast<unsigned int>(rule.chosen)) experts[threadIdx.x] = -1, weights[threadIdx.x] = 0.0f;
    return;
  }
  uint32_t admitted = 0xFFFFFFFFu;
  if (rule.pool_block > 0) {
    const AttentionSegment& segment = a.segments[shared->segment];
    const int32_t begin = n - (segment.first_position + n - segment.first_row) % rule.pool_block;
    admitted = AdmittedByPool(a.logits, a.stride, max(begin, segment.first_row),
                              min(begin + rule.pool_block, segment.first_row + segment.rows), rule, shared);
  }
  Scores scores;
  ScoreRow(a.logits + n * a.stride, rule, shared, scores);
#pragma unroll
  for (int i = 0; i < kExpertsOfThread; ++i) {
    if (ExpertOf(i) >= rule.experts) continue;
    shared->biased[ExpertOf(i)] = scores.biased[i];
    shared->keys[ExpertOf(i)] = (admitted >> i & 1u) != 0 ? KeyOf(scores.biased[i]) : 0;
  }
  __syncthreads();
  if (rule.groups > 0) {
    KeepGroups(rule, shared);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kExpertsOfThread; ++i) {
    if (ExpertOf(i) >= rule.experts) continue;
    const int32_t place = PlaceOf(ExpertOf(i), shared->keys, rule.experts);
    if (place >= rule.chosen) continue;
    shared->chosen[place] = ExpertOf(i);
    shared->weights[place] = rule.weigh_biased ? scores.biased[i] : scores.plain[i];
  }
  __syncthreads();
  WriteChoices(rule, a.round_to_bf16, shared, experts, weights);
}

}  // namespace

cudaError_t LaunchRoute(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, DType activation,
                        int32_t* experts, float* weights, cudaStream_t stream) {
  if (logits.rows == 0) return cudaSuccess;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>(logits.rows)),
                             .block = dim3(kThreads),
                             .shared_bytes = sizeof(RouteShared),
                             .stream = stream,
                             .overlap = true};
  const auto launch = [&]<typename T>(void (*kernel)(RouteArguments<T>)) {
    return Launch(kernel, shape,
                  RouteArguments<T>{.segments = layout.segments,
                                    .segments_count = layout.segments_count,
                                    .logits = static_cast<const T*>(logits.data),
                                    .stride = logits.stride,
                                    .rule = rule,
                                    .round_to_bf16 = activation == DType::kBf16,
                                    .experts = experts,
                                    .weights = weights});
  };
  return logits.dtype == DType::kF32 ? launch(RouteKernel<float>) : launch(RouteKernel<__nv_bfloat16>);
}

}  // namespace quicksilver
