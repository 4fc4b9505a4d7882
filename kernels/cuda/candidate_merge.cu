#include <cmath>

#include "kernels/cuda/candidate_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpLanes = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr float kMinusInfinity = -INFINITY;

/// What the merge knows of some parts that does not depend on the order of looking at them.
struct Leaders {
  float best_logit = kMinusInfinity;
  float second_logit = kMinusInfinity;
  float mask_logit = kMinusInfinity;
  float sampled_logit = kMinusInfinity;
  double sampled_score = kMinusInfinity;
  int32_t best_id = -1;
  int32_t sampled_id = -1;
  int32_t finite = 1;

  __device__ __forceinline__ void Add(const Leaders& other) {
    const bool better = other.best_id >= 0 && (best_id < 0 || other.best_logit > best_logit ||
                                               (other.best_logit == best_logit && other.best_id < best_id));
    second_logit = better ? fmaxf(other.second_logit, best_logit) : fmaxf(second_logit, other.best_logit);
    best_logit = better ? other.best_logit : best_logit;
    best_id = better ? other.best_id : best_id;
    mask_logit = fmaxf(mask_logit, other.mask_logit);
    finite = finite != 0 && other.finite != 0 ? 1 : 0;
    const bool drawn =
        other.sampled_id >= 0 && (sampled_id < 0 || other.sampled_score > sampled_score ||
                                  (other.sampled_score == sampled_score && other.sampled_id < sampled_id));
    if (!drawn) return;
    sampled_id = other.sampled_id;
    sampled_score = other.sampled_score;
    sampled_logit = other.sampled_logit;
  }
};

__device__ __forceinline__ Leaders LeadersOf(const CandidatePart& part) {
  return {part.largest,       part.second,  part.mask_logit, part.sampled_logit,
          part.sampled_score, part.best_id, part.sampled_id, part.finite};
}

template <typename T>
__device__ __forceinline__ T FromLane(T v, int gap) {
  return __shfl_xor_sync(kAllLanes, v, gap);
}

__device__ __forceinline__ Leaders MergeLeaders(const CandidatePart* parts, int32_t row_parts, int32_t lane) {
  Leaders all;
  for (int32_t p = lane; p < row_parts; p += kWarpLanes) all.Add(LeadersOf(parts[p]));
  for (int gap = kWarpLanes / 2; gap > 0; gap /= 2) {
    all.Add({FromLane(all.best_logit, gap), FromLane(all.second_logit, gap), FromLane(all.mask_logit, gap),
             FromLane(all.sampled_logit, gap), FromLane(all.sampled_score, gap), FromLane(all.best_id, gap),
             FromLane(all.sampled_id, gap), FromLane(all.finite, gap)});
  }
  return all;
}

/// Every lane gets the same bits: a + b is b + a.
__device__ __forceinline__ double WarpSum(double v) {
  for (int gap = kWarpLanes / 2; gap > 0; gap /= 2) v += FromLane(v, gap);
  return v;
}

/// Adds all parts and the mask, in double, with the 1 of every largest logit: in ascending order a lane, then lanes as
/// a tree.
__device__ __forceinline__ void MergeSums(const CandidatePart* parts, int32_t row_parts, int32_t lane,
                                          const Leaders& all, float temperature, Candidate* out) {
  out->log_sum_exp = out->tempered_log_sum_exp = kMinusInfinity;
  const double largest = fmaxf(all.best_logit, all.mask_logit);
  if (largest == kMinusInfinity) return;
  const double divisor = temperature > 0.0f ? temperature : 1.0;
  double sum = 0.0, weighted_sum = 0.0, tempered_sum = 0.0;
  const auto add = [&](double z, double one_and_sum, double weighted, double tempered) {
    if (z == kMinusInfinity) return;
    const double below = z - largest, factor = exp(below);
    sum += one_and_sum * factor;
    weighted_sum += (weighted + below * one_and_sum) * factor;
    tempered_sum += temperature > 0.0f ? tempered * exp(below / divisor) : 0.0;
  };
  for (int32_t p = lane; p < row_parts; p += kWarpLanes) {
    add(parts[p].largest, 1.0 + parts[p].sum, parts[p].weighted_sum, 1.0 + parts[p].tempered_sum);
  }
  if (lane == 0) add(all.mask_logit, 1.0, 0.0, 1.0);
  sum = WarpSum(sum);
  weighted_sum = WarpSum(weighted_sum);
  tempered_sum = WarpSum(tempered_sum);
  out->log_sum_exp = largest + log(sum);
  out->mean_logit = static_cast<float>(largest + weighted_sum / sum);
  out->tempered_log_sum_exp = temperature > 0.0f ? largest / divisor + log(tempered_sum) : out->log_sum_exp;
}

/// One warp per request.
__global__ void __launch_bounds__(kThreads)
    CandidateMergeKernel(const CandidateRequest* requests, int32_t requests_count, const CandidatePart* parts,
                         int32_t row_parts, Candidate* out) {
  DependencyWait();
  const int32_t r = static_cast<int32_t>(blockIdx.x) * (kThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  const int32_t lane = threadIdx.x % kWarpLanes;
  if (r >= requests_count) return;
  const float temperature = requests[r].temperature;
  const int32_t count = requests[r].row >= 0 ? row_parts : 0;
  const CandidatePart* const row = parts + static_cast<int64_t>(r) * row_parts;
  const Leaders all = MergeLeaders(row, count, lane);
  Candidate merged;
  MergeSums(row, count, lane, all, temperature, &merged);
  merged.best_id = all.best_id;
  merged.best_logit = all.best_logit;
  merged.second_logit = all.second_logit;
  merged.sampled_id = temperature > 0.0f ? all.sampled_id : all.best_id;
  merged.sampled_logit = temperature > 0.0f ? all.sampled_logit : all.best_logit;
  merged.sampled_score = temperature > 0.0f ? all.sampled_score : static_cast<double>(all.best_logit);
  merged.finite = all.finite;
  if (lane == 0) out[r] = merged;
}

}  // namespace

cudaError_t LaunchCandidateMerge(const CandidateRequest* requests, int32_t requests_count, const CandidatePart* parts,
                                 int32_t row_parts, Candidate* out, cudaStream_t stream) {
  constexpr int32_t kBlockRequests = kThreads / kWarpLanes;
  return Launch(CandidateMergeKernel,
                {.grid = dim3(static_cast<uint32_t>((requests_count + kBlockRequests - 1) / kBlockRequests)),
                 .block = dim3(kThreads),
                 .stream = stream,
                 .overlap = true},
                requests, requests_count, parts, row_parts, out);
}

}  // namespace quicksilver
