#include <cfloat>

#include "common/philox.h"
#include "kernels/cuda/candidate_logits.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpLanes = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr int kLoads = kPartIds / (4 * kWarpLanes);  // Loads of four logits a lane.
constexpr float kMinusInfinity = -INFINITY;
constexpr float kLog2E = 1.44269504f;

/// No 1 - u of UniformDraw is smaller.
constexpr float kSmallestTail = 0x1p-53f;

/// First column of a lane's four neighbours.
__device__ __forceinline__ int32_t ColumnOf(int32_t lane, int load) { return 4 * (load * kWarpLanes + lane); }

__device__ __forceinline__ float WarpMax(float v) {
  for (int gap = kWarpLanes / 2; gap > 0; gap /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, gap));
  return v;
}

__device__ __forceinline__ int32_t WarpMin(int32_t v) {
  for (int gap = kWarpLanes / 2; gap > 0; gap /= 2) v = min(v, __shfl_xor_sync(kAllLanes, v, gap));
  return v;
}

/// The best draw so far.
struct Sample {
  double score;
  float logit;
  int32_t id;  ///< -1: none.
};

__device__ __forceinline__ Sample Better(const Sample& a, const Sample& b) {
  if (b.id < 0) return a;
  if (a.id < 0) return b;
  return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

__device__ __forceinline__ Sample WarpBest(Sample sample) {
  for (int gap = kWarpLanes / 2; gap > 0; gap /= 2) {
    sample =
        Better(sample, {__shfl_xor_sync(kAllLanes, sample.score, gap), __shfl_xor_sync(kAllLanes, sample.logit, gap),
                        __shfl_xor_sync(kAllLanes, sample.id, gap)});
  }
  return sample;
}

/// Reads a lane's logits and leaves -inf for what may not be chosen. Says the mask's logit, which every lane gets, and
/// whether those of all real ids are below +inf and numbers.
__device__ __forceinline__ bool ReadLogits(const RowLogits& row, int32_t lane, float (&z)[kLoads][4],
                                           float* mask_logit) {
#pragma unroll
  for (int load = 0; load < kLoads; ++load) RowLogits::Load4(row.conditional + ColumnOf(lane, load), z[load]);
  if (row.unconditional != nullptr) {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) row.Guide4(ColumnOf(lane, load), z[load]);
  }
  if (row.bias_count != 0) {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) row.Bias4(ColumnOf(lane, load), z[load]);
  }
  bool finite = true;
  if (row.AllMayBeChosen(kPartIds)) {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
#pragma unroll
      for (int i = 0; i < 4; ++i) finite = finite && z[load][i] < INFINITY;
    }
  } else {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t column = ColumnOf(lane, load) + i;
        if (!row.Exists(column)) z[load][i] = kMinusInfinity;
        finite = finite && z[load][i] < INFINITY;
        if (column != row.mask) continue;
        *mask_logit = z[load][i];
        z[load][i] = kMinusInfinity;
      }
    }
    *mask_logit = WarpMax(*mask_logit);
  }
  return __all_sync(kAllLanes, finite);
}

/// The largest logit of the part, and the first column with it: kPartIds when all are -inf.
__device__ __forceinline__ int32_t FindLargest(int32_t lane, const float (&z)[kLoads][4], float* largest) {
  float mine = kMinusInfinity;
  int32_t column = kPartIds;
#pragma unroll
  for (int load = 0; load < kLoads; ++load) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool larger = z[load][i] > mine;
      mine = larger ? z[load][i] : mine;
      column = larger ? ColumnOf(lane, load) + i : column;
    }
  }
  *largest = WarpMax(mine);
  return WarpMin(mine == *largest ? column : kPartIds);
}

/// The first column that may be chosen, or kPartIds.
__device__ __forceinline__ int32_t FirstAllowed(const RowLogits& row, int32_t lane) {
  int32_t column = lane;
  while (column < kPartIds && (!row.MayChoose(column) || row.Forbids(column))) column += kWarpLanes;
  return WarpMin(min(column, kPartIds));
}

/// Looks at the part without column `best`, which has the largest logit (above -inf). Adds up in ascending order a
/// lane, then lanes as a tree.
__device__ __forceinline__ void SumLogits(int32_t lane, const float (&z)[kLoads][4], int32_t best,
                                          CandidatePart* part) {
  float sum = 0.0f, weighted_sum = 0.0f, second = kMinusInfinity;
#pragma unroll
  for (int load = 0; load < kLoads; ++load) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float other = ColumnOf(lane, load) + i == best ? kMinusInfinity : z[load][i];
      second = fmaxf(second, other);
      const float below = fmaxf(other - part->largest, -FLT_MAX);  // So that -inf weighs 0 and not NaN.
      const float e = Exp2Approximate(below * kLog2E);
      sum += e;
      weighted_sum = __fmaf_rn(below, e, weighted_sum);
    }
  }
  part->second = WarpMax(second);
  part->sum = WarpSum(sum);
  part->weighted_sum = WarpSum(weighted_sum);
}

/// Weighs what the slot holds of the part by what the part says now, and keeps the part's logits there.
__device__ __forceinline__ void TakeHistory(const RowLogits& row, bool valid, int32_t lane, const float (&z)[kLoads][4],
                                            float* slot, CandidatePart* part) {
  float sum = 0.0f;
#pragma unroll
  for (int load = 0; load < kLoads; ++load) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t column = ColumnOf(lane, load) + i;
      if (column >= row.columns) continue;
      const float before = valid ? slot[column] : 0.0f;
      if (column == row.mask) part->mask_previous = before;
      const float below = fmaxf(z[load][i] - part->largest, -FLT_MAX);
      const float e = Exp2Approximate(below * kLog2E);
      if (e > 0.0f) sum = __fmaf_rn(before - part->largest, e, sum);
      slot[column] = column == row.mask ? part->mask_logit : z[load][i];
    }
  }
  part->previous_sum = WarpSum(sum);
  // The lane that has the mask tells the others.
  const int32_t owner = row.mask / 4 % kWarpLanes;
  if (row.mask >= 0 && row.mask < kPartIds) part->mask_previous = __shfl_sync(kAllLanes, part->mask_previous, owner);
}

/// One part of a request with T > 0.
struct Draws {
  const RowLogits& row;
  const CandidateRequest& request;  // In global memory: read where needed, or it would take up registers.
  double temperature;

  __device__ __forceinline__ Sample Draw(int32_t column) const {
    const int32_t id = row.first_id + column;
    const float z = row.At(column);
    return {static_cast<double>(z) / temperature + GumbelDraw(request.place, static_cast<uint32_t>(id)), z, id};
  }

  /// How far the largest z/T is above the score to beat.
  __device__ __forceinline__ double Lead(float largest, double score) const {
    return static_cast<double>(largest) / temperature - score;
  }

  /// 1 - u can only be at most this if the id is to beat the score s: -ln u <= e^(z/T - s), and 1 - u <= -ln u. To be
  /// multiplied by e^((z - largest)/T); the slack covers the floats.
  __device__ __forceinline__ float TailMax(float largest, double score) const {
    constexpr float kSlack = 1.001f;
    return kSlack * expf(static_cast<float>(Lead(largest, score)));
  }

  /// Which of the columns [column, column + 4) may beat the best score so far, as bits. The upper 32 bits of a draw are
  /// enough to tell that it cannot: 1 - u is at least their complement.
  __device__ __forceinline__ uint32_t MayWin(int32_t column, const float (&tails_max)[4]) const {
    if (fmaxf(fmaxf(tails_max[0], tails_max[1]), fmaxf(tails_max[2], tails_max[3])) < kSmallestTail) return 0;
    uint32_t words[4];
    HighWords(static_cast<uint32_t>(row.first_id + column), words);
    uint32_t may_win = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float tail_min = static_cast<float>(~words[i]) * 0x1p-32f;
      if (tails_max[i] >= kSmallestTail && tail_min <= tails_max[i]) may_win |= 1u << i;
    }
    return may_win;
  }

  /// Of the ids [id, id + 4).
  __device__ __forceinline__ void HighWords(uint32_t id, uint32_t (&words)[4]) const {
    const PhiloxWords four = UniformDrawHighWords(request.place, id / 4, DrawPurpose::kGumbel);
    words[0] = four.w[0];
    words[1] = four.w[1];
    words[2] = four.w[2];
    words[3] = four.w[3];
    if (id % 4 == 0) return;  // Unless the shard begins in the middle of four, and then for all lanes alike.
    const PhiloxWords next = UniformDrawHighWords(request.place, id / 4 + 1, DrawPurpose::kGumbel);
    const uint32_t both[7] = {four.w[0], four.w[1], four.w[2], four.w[3], next.w[0], next.w[1], next.w[2]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = id % 4 == 1 ? both[i + 1] : id % 4 == 2 ? both[i + 2] : both[min(i + 3, 6)];
    }
  }
};

/// Sums e^((z - largest)/T) into `part` and betters `sample`. Two logarithms in double for every id would cost more
/// than the LM head: an id is drawn only when the bound on its draw lets it win, so the arg-max stays exact, and
/// whatever is known of other parts only saves work.
__device__ __forceinline__ void SampleLogits(const Draws& draws, int32_t lane, int32_t best, CandidatePart* part,
                                             Sample* sample) {
  const RowLogits& row = draws.row;
  const float largest = part->largest;
  const bool none = sample->id < 0;
  const bool hopeless = !none && draws.Lead(largest, sample->score) < -kGumbelDrawMax;
  if (none) *sample = draws.Draw(best);
  if (largest == kMinusInfinity) return;
  const bool whole = row.AllMayBeChosen(kPartIds);
  const float inverse = fminf(static_cast<float>(double{kLog2E} / draws.temperature), FLT_MAX);
  float tail_max = hopeless ? 0.0f : draws.TailMax(largest, sample->score), sum = 0.0f, weighted_sum = 0.0f;
#pragma unroll 1
  for (int load = 0; load < kLoads; ++load) {
    const int32_t column = ColumnOf(lane, load);
    float z[4], tails_max[4];
    row.Four(column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool counts = column + i != best && (whole || row.MayChoose(column + i));
      const float below = counts ? fmaxf(z[i] - largest, -FLT_MAX) : -FLT_MAX;  // So that -inf weighs 0 and not NaN.
      const float e = counts ? Exp2Approximate(below * inverse) : 0.0f;
      sum += e;
      weighted_sum = __fmaf_rn(below, e, weighted_sum);
      tails_max[i] = column + i == best && !none ? tail_max : e * tail_max;
    }
    const uint32_t may_win = draws.MayWin(column, tails_max);
    if (!__any_sync(kAllLanes, may_win != 0)) continue;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      if ((may_win >> i & 1u) != 0) *sample = Better(*sample, draws.Draw(column + i));
    }
    *sample = WarpBest(*sample);
    tail_max = draws.TailMax(largest, sample->score);
  }
  part->tempered_sum = WarpSum(sum);
  part->tempered_weighted_sum = WarpSum(weighted_sum);
}

/// The logit that is asked for, or -inf when it is elsewhere.
__device__ __forceinline__ float AskedLogit(const RowLogits& row, const CandidateRequest& request) {
  const int32_t column = request.asked_id - row.first_id;
  if (request.asked_id < 0 || column < 0 || column >= min(row.columns, kPartIds)) return kMinusInfinity;
  return row.Exists(column) ? row.At(column) : kMinusInfinity;
}

/// The best draw of a few parts before the tile, which know of those before their own tile.
__device__ __forceinline__ Sample SampleBefore(const CandidateTile& tile, const CandidatePart* row_parts) {
  constexpr int32_t kPartsMax = 8;
  const int32_t end = tile.first / kPartIds;
  Sample sample = {kMinusInfinity, kMinusInfinity, -1};
#pragma unroll 1
  for (int32_t p = max(end - kPartsMax, 0); p < end; ++p) {
    sample = Better(sample, {row_parts[p].sampled_score, row_parts[p].sampled_logit, row_parts[p].sampled_id});
  }
  return sample;
}

/// One warp per part of a request: parts of a request lie side by side in the grid.
__global__ void __launch_bounds__(kThreads)
    CandidatePartsKernel(CandidateTile tile, CandidatePart* parts, int32_t row_parts) {
  DependencyWait();
  const int32_t tile_parts = (tile.columns + kPartIds - 1) / kPartIds;
  const int32_t item = static_cast<int32_t>(blockIdx.x) * (kThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  const int32_t lane = threadIdx.x % kWarpLanes, r = item / tile_parts;
  if (r >= tile.batch.count) return;
  const CandidateRequest& request = tile.batch.requests[r];
  if (request.row < 0) return;
  const int32_t first = item % tile_parts * kPartIds;
  const RowLogits row = LogitsOf(tile, request, first, kPartIds);
  CandidatePart* const all = parts + static_cast<int64_t>(r) * row_parts;
  CandidatePart part = {
      .largest = kMinusInfinity, .second = kMinusInfinity, .mask_logit = kMinusInfinity, .asked_logit = kMinusInfinity};
  Sample sample = {kMinusInfinity, kMinusInfinity, -1};
  float z[kLoads][4];
  part.finite = ReadLogits(row, lane, z, &part.mask_logit) ? 1 : 0;
  if (part.finite != 0) {
    int32_t best = FindLargest(lane, z, &part.largest);
    if (best < kPartIds) {
      SumLogits(lane, z, best, &part);
    } else {
      best = FirstAllowed(row, lane);
    }
    if (best < kPartIds) part.best_id = row.first_id + best;
    part.asked_logit = AskedLogit(row, request);
    if (request.history_slot >= 0) {
      float* const slot = tile.batch.history + request.history_slot * tile.shard_columns + tile.first + first;
      TakeHistory(row, request.history_valid != 0, lane, z, slot, &part);
    }
    if (request.temperature > 0.0f) {
      sample = SampleBefore(tile, all);
      const Draws draws = {row, request, request.temperature};
      if (best < kPartIds) SampleLogits(draws, lane, best, &part, &sample);
    }
  }
  part.sampled_score = sample.score;
  part.sampled_logit = sample.logit;
  part.sampled_id = sample.id;
  if (lane == 0) all[(tile.first + first) / kPartIds] = part;
}

__global__ void __launch_bounds__(kThreads) SoftCapKernel(float* logits, int64_t stride, int32_t columns, float cap) {
  DependencyWait();
  DependencyLaunch();
  float* const row = logits + blockIdx.y * stride;
  const int32_t column = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (column < columns) row[column] = cap * tanhf(row[column] / cap);
}

}  // namespace

cudaError_t LaunchSoftCap(const CandidateTile& tile, float* logits, int64_t rows, cudaStream_t stream) {
  return Launch(
      SoftCapKernel,
      {.grid = dim3(static_cast<uint32_t>((tile.columns + kThreads - 1) / kThreads), static_cast<uint32_t>(rows)),
       .block = dim3(kThreads),
       .stream = stream,
       .overlap = true},
      logits, tile.stride, tile.columns, tile.shard.soft_cap);
}

cudaError_t LaunchCandidateParts(const CandidateTile& tile, CandidatePart* parts, int32_t row_parts,
                                 cudaStream_t stream) {
  const int64_t items = int64_t{tile.batch.count} * ((tile.columns + kPartIds - 1) / kPartIds);
  constexpr int64_t kBlockItems = kThreads / kWarpLanes;
  return Launch(CandidatePartsKernel,
                {.grid = dim3(static_cast<uint32_t>((items + kBlockItems - 1) / kBlockItems)),
                 .block = dim3(kThreads),
                 .stream = stream,
                 .overlap = true},
                tile, parts, row_parts);
}

}  // namespace quicksilver
