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
  float asked_logit = kMinusInfinity;

  __device__ __forceinline__ void Add(const Leaders& other) {
    const bool better = other.best_id >= 0 && (best_id < 0 || other.best_logit > best_logit ||
                                               (other.best_logit == best_logit && other.best_id < best_id));
    second_logit = better ? fmaxf(other.second_logit, best_logit) : fmaxf(second_logit, other.best_logit);
    best_logit = better ? other.best_logit : best_logit;
    best_id = better ? other.best_id : best_id;
    mask_logit = fmaxf(mask_logit, other.mask_logit);
    asked_logit = fmaxf(asked_logit, other.asked_logit);
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
  return {part.largest, part.second,     part.mask_logit, part.sampled_logit, part.sampled_score,
          part.best_id, part.sampled_id, part.finite,     part.asked_logit};
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
             FromLane(all.sampled_id, gap), FromLane(all.finite, gap), FromLane(all.asked_logit, gap)});
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
                                          const Leaders& all, const CandidateRequest& request, Candidate* out) {
  out->log_sum_exp = out->tempered_log_sum_exp = kMinusInfinity;
  const double largest = fmaxf(all.best_logit, all.mask_logit);
  if (largest == kMinusInfinity) return;
  const bool tempered = request.temperature > 0.0f;
  double sum = 0.0, weighted_sum = 0.0, tempered_sum = 0.0, tempered_weighted_sum = 0.0, previous_sum = 0.0;
  const auto add = [&](const CandidatePart& part) {
    if (part.largest == kMinusInfinity) return;
    const double below = double{part.largest} - largest, factor = exp(below);
    sum += (1.0 + part.sum) * factor;
    weighted_sum += (part.weighted_sum + below * (1.0 + part.sum)) * factor;
    if (factor > 0.0) previous_sum += (part.previous_sum + below * (1.0 + part.sum)) * factor;
    if (!tempered) return;
    const double tempered_factor = exp(below / request.temperature);
    tempered_sum += (1.0 + part.tempered_sum) * tempered_factor;
    tempered_weighted_sum += (part.tempered_weighted_sum + below * (1.0 + part.tempered_sum)) * tempered_factor;
  };
  for (int32_t p = lane; p < row_parts; p += kWarpLanes) {
    add(parts[p]);
    add({.largest = parts[p].mask_logit, .previous_sum = parts[p].mask_previous - parts[p].mask_logit});
  }
  sum = WarpSum(sum);
  weighted_sum = WarpSum(weighted_sum);
  previous_sum = WarpSum(previous_sum);
  out->log_sum_exp = out->tempered_log_sum_exp = largest + log(sum);
  out->mean_logit = out->tempered_mean_logit = largest + weighted_sum / sum;
  if (request.history_slot >= 0 && request.history_valid != 0) out->mean_previous = largest + previous_sum / sum;
  if (!tempered) return;
  tempered_sum = WarpSum(tempered_sum);
  tempered_weighted_sum = WarpSum(tempered_weighted_sum);
  out->tempered_log_sum_exp = largest / request.temperature + log(tempered_sum);
  out->tempered_mean_logit = largest + tempered_weighted_sum / tempered_sum;
}

/// One warp per request.
__global__ void __launch_bounds__(kThreads)
    CandidateMergeKernel(CandidateBatch batch, const CandidatePart* parts, int32_t row_parts, Candidate* out) {
  DependencyWait();
  const int32_t r = static_cast<int32_t>(blockIdx.x) * (kThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  const int32_t lane = threadIdx.x % kWarpLanes;
  if (r >= batch.count) return;
  const CandidateRequest& request = batch.requests[r];
  const float temperature = request.temperature;
  const int32_t count = request.row >= 0 ? row_parts : 0;
  const CandidatePart* const row = parts + static_cast<int64_t>(r) * row_parts;
  const Leaders all = MergeLeaders(row, count, lane);
  Candidate merged;
  MergeSums(row, count, lane, all, request, &merged);
  merged.best_id = all.best_id;
  merged.best_logit = all.best_logit;
  merged.second_logit = all.second_logit;
  merged.sampled_id = temperature > 0.0f ? all.sampled_id : all.best_id;
  merged.sampled_logit = temperature > 0.0f ? all.sampled_logit : all.best_logit;
  merged.sampled_score = temperature > 0.0f ? all.sampled_score : static_cast<double>(all.best_logit);
  merged.asked_logit = all.asked_logit;
  merged.finite = all.finite;
  if (lane == 0) out[r] = merged;
}

}  // namespace

cudaError_t LaunchCandidateMerge(const CandidateBatch& batch, const CandidatePart* parts, int32_t row_parts,
                                 Candidate* out, cudaStream_t stream) {
  constexpr int32_t kBlockRequests = kThreads / kWarpLanes;
  return Launch(CandidateMergeKernel,
                {.grid = dim3(static_cast<uint32_t>((batch.count + kBlockRequests - 1) / kBlockRequests)),
                 .block = dim3(kThreads),
                 .stream = stream,
                 .overlap = true},
                batch, parts, row_parts, out);
}

}  // namespace quicksilver
