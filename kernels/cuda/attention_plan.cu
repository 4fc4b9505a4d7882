#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver::attention {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kWarps = kThreads / 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

/// Sums of all threads' values: of the threads before this one, and of all.
struct Sums {
  int32_t before;
  int32_t all;
};

/// `scratch`: [kWarps] in shared memory. Called by all threads.
__device__ __forceinline__ Sums SumBlock(int32_t value, int32_t* scratch) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
  int32_t inclusive = value;
#pragma unroll
  for (int32_t distance = 1; distance < 32; distance *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, inclusive, distance);
    if (lane >= distance) inclusive += other;
  }
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  Sums sums = {inclusive - value, 0};
#pragma unroll
  for (int32_t w = 0; w < kWarps; ++w) {
    if (w < warp) sums.before += scratch[w];
    sums.all += scratch[w];
  }
  __syncthreads();
  return sums;
}

/// Fills first_tiles; returns how many query tiles the step has.
__device__ __forceinline__ int32_t CountTiles(const PlanRequest& request, const Plan& plan, int32_t* scratch) {
  int32_t total = 0;
  for (int32_t base = 0; base < request.segments_count; base += kThreads) {
    const int32_t s = base + static_cast<int32_t>(threadIdx.x);
    const bool exists = s < request.segments_count;
    const int32_t queries = exists ? request.segments[s].rows * request.group.divisor : 0;
    const Sums tiles = SumBlock((queries + request.tile_queries - 1) / request.tile_queries, scratch);
    if (exists) plan.first_tiles[s] = total + tiles.before;
    total += tiles.all;
  }
  __syncthreads();
  return total;
}

/// Query tile `tile` of the step, over all of its keys.
__device__ __forceinline__ Job WholeJob(const PlanRequest& request, const Plan& plan, int32_t tile) {
  int32_t low = 0, high = request.segments_count - 1;  // The last segment that begins at or before the tile.
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (plan.first_tiles[middle] <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const AttentionSegment segment = request.segments[low];
  Job job = {};
  job.first_row = segment.first_row;
  job.rows = segment.rows;
  job.first_position = segment.first_position;
  job.keys = segment.keys;
  job.first_page = segment.first_page;
  job.block_length = segment.block_length;
  job.unseen_key = segment.unseen_key;
  job.first_query = (tile - plan.first_tiles[low]) * request.tile_queries;
  job.queries = min(request.tile_queries, segment.rows * request.group.divisor - job.first_query);
  const int32_t last_row = request.group.Quotient(job.first_query + job.queries - 1);
  job.visible = VisibleKeys(segment.block_length, segment.keys, segment.first_position + last_row);
  const int32_t first_row = request.group.Quotient(job.first_query);
  job.first_tile =
      FirstKey(request.window, segment.block_length, segment.first_position, segment.first_position + first_row) /
      kTileKeys;
  job.end_tile = (job.visible + kTileKeys - 1) / kTileKeys;
  job.partial = -1;
  return job;
}

/// Key tiles of a job.
__device__ __forceinline__ int32_t CostOf(const Job& job) { return job.end_tile - job.first_tile; }

/// The first chunk that a job has keys of.
__device__ __forceinline__ int32_t FirstChunk(const Job& job) { return ChunkOf(job.first_tile * kTileKeys); }

/// Fills costs_before; returns the sum of all costs.
__device__ __forceinline__ int32_t CountCosts(const PlanRequest& request, const Plan& plan, int32_t tiles,
                                              int32_t* scratch) {
  int32_t total = 0;
  for (int32_t base = 0; base < tiles; base += kThreads) {
    const int32_t tile = base + static_cast<int32_t>(threadIdx.x);
    const Sums cost = SumBlock(tile < tiles ? CostOf(WholeJob(request, plan, tile)) : 0, scratch);
    if (tile < tiles) plan.costs_before[tile] = total + cost.before;
    total += cost.all;
  }
  __syncthreads();
  return total;
}

/// Blocks take items (a job of a key head each) in turns, so an item starts about when the full turns before it are
/// done. One that would then end later than half as much again as the even share is worth its partial results.
__device__ __forceinline__ bool WantsSplit(const PlanRequest& request, const Plan& plan, int32_t tile, int32_t cost,
                                           int32_t total_cost) {
  if (request.split != Split::kAuto) return request.split == Split::kAlways;
  const int32_t last_item = (tile + 1) * request.kv_heads - 1;
  const int32_t turn_start = last_item / request.blocks * request.blocks / request.kv_heads;
  const int64_t before = int64_t{plan.costs_before[turn_start]} * request.kv_heads;
  const int64_t end = before + int64_t{cost} * request.blocks;
  return 2 * end > 3 * int64_t{total_cost} * request.kv_heads;
}

__device__ __forceinline__ void WritePieces(const PlanRequest& request, const Job& whole, int32_t chunks, Job* pieces) {
  for (int32_t c = 0; c < chunks; ++c) {
    Job piece = whole;
    const int32_t chunk = FirstChunk(whole) + c;
    piece.first_tile = max(whole.first_tile, ChunkStart(chunk) / kTileKeys);
    piece.end_tile = min(whole.end_tile, ChunkStart(chunk + 1) / kTileKeys);
    piece.partial = whole.partial + c * request.kv_heads * whole.queries;
    pieces[c] = piece;
  }
}

/// Decides for every query tile whether its keys are split, and writes the jobs.
__device__ __forceinline__ Counts WriteJobs(const PlanRequest& request, const Plan& plan, int32_t tiles,
                                            int32_t total_cost, int32_t* scratch) {
  Counts counts = {};
  int32_t partial_rows = 0;
  for (int32_t base = 0; base < tiles; base += kThreads) {
    const int32_t tile = base + static_cast<int32_t>(threadIdx.x);
    const bool exists = tile < tiles;
    Job job = exists ? WholeJob(request, plan, tile) : Job{};
    const int32_t chunks = exists ? ChunkOf(job.visible - 1) - FirstChunk(job) + 1 : 0;
    const bool wants = chunks > 1 && WantsSplit(request, plan, tile, CostOf(job), total_cost);
    const int32_t rows = chunks * request.kv_heads * job.queries;
    // What finds no room stays whole. One that is larger than all the room must not make the sum run over.
    const Sums wanted_rows = SumBlock(wants ? min(rows, request.partial_rows_max + 1) : 0, scratch);
    const Sums wanted_jobs = SumBlock(!exists ? 0 : wants ? chunks : 1, scratch);
    const bool split = wants && int64_t{partial_rows} + wanted_rows.before + rows <= request.partial_rows_max &&
                       counts.jobs + wanted_jobs.before + chunks + tiles - tile - 1 <= kJobsMax;
    const Sums splits = SumBlock(split ? 1 : 0, scratch);
    const Sums units = SumBlock(split ? job.queries * request.kv_heads : 0, scratch);
    const Sums used_rows = SumBlock(split ? rows : 0, scratch);
    const Sums used_jobs = SumBlock(!exists ? 0 : split ? chunks : 1, scratch);
    Job* const jobs = plan.jobs + counts.jobs + used_jobs.before;
    if (split) {
      job.partial = partial_rows + used_rows.before;
      WritePieces(request, job, chunks, jobs);
      plan.merges[counts.merges + splits.before] = {job.first_row, job.first_query, job.queries,
                                                    chunks,        job.partial,     counts.merge_units + units.before};
    } else if (exists) {
      *jobs = job;
    }
    counts.jobs += used_jobs.all;
    counts.merges += splits.all;
    counts.merge_units += units.all;
    partial_rows += used_rows.all;
  }
  return counts;
}

/// One block.
__global__ void __launch_bounds__(kThreads, 1) PlanKernel(PlanRequest request, Plan plan) {
  int32_t* const scratch = reinterpret_cast<int32_t*>(SharedMemory());
  const int32_t tiles = CountTiles(request, plan, scratch);
  const int32_t total_cost = CountCosts(request, plan, tiles, scratch);
  const Counts counts = WriteJobs(request, plan, tiles, total_cost, scratch);
  if (threadIdx.x == 0) *plan.counts = counts;
}

}  // namespace

cudaError_t LaunchPlan(cudaStream_t stream, const PlanRequest& request, const Plan& plan) {
  return Launch(PlanKernel,
                {.grid = dim3(1), .block = dim3(kThreads), .shared_bytes = kWarps * sizeof(int32_t), .stream = stream},
                request, plan);
}

}  // namespace quicksilver::attention
