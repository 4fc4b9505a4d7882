#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace quicksilver::attention {

/// Keys that are loaded, scored and added at a time, counted from position 0.
inline constexpr int32_t kTileKeys = 64;

// The key axis is cut at fixed absolute positions into chunks of whole tiles. Every chunk has a softmax of its own, and
// the chunks of a query are merged in ascending order: by the block that has made them, or by a later kernel. Both use
// the same arithmetic, so who does it shows in no bit. Chunks grow with the position: a short context must give work to
// every multiprocessor, while a long one must not spend its time on merging.
//   positions      0.. 1,023    1,024.. 4,095    4,096..16,383    16,384..
//   chunk of         128              256              512          1,024
__host__ __device__ constexpr int32_t ChunkOf(int32_t position) {
  if (position < 1024) return position / 128;
  if (position < 4096) return 8 + (position - 1024) / 256;
  if (position < 16384) return 20 + (position - 4096) / 512;
  return 44 + (position - 16384) / 1024;
}

/// The first position of a chunk.
__host__ __device__ constexpr int32_t ChunkStart(int32_t chunk) {
  if (chunk < 8) return chunk * 128;
  if (chunk < 20) return 1024 + (chunk - 8) * 256;
  if (chunk < 44) return 4096 + (chunk - 20) * 512;
  return 16384 + (chunk - 44) * 1024;
}

/// Divides numbers in [0, 2^31) by one that only the host knows.
struct Divisor {
  int32_t divisor = 1;
  uint32_t multiplier = 1u << 31;
  uint32_t shift = 0;

  static Divisor Of(int32_t divisor) {
    uint32_t log = 0;
    while ((int64_t{1} << log) < divisor) ++log;
    const uint64_t power = uint64_t{1} << (31 + log), d = static_cast<uint64_t>(divisor);
    return {divisor, static_cast<uint32_t>((power + d - 1) / d), log};
  }

  // The multiplier is too large by less than 1 / 2^31 of itself, so this is exact.
  __host__ __device__ constexpr int32_t Quotient(int32_t value) const {
    return static_cast<int32_t>((uint64_t{static_cast<uint32_t>(value) * 2} * multiplier >> 32) >> shift);
  }
};

/// How many of `keys` keys, from position 0 on, a query at `position` may see: those of its own block and of earlier
/// ones, or all.
__host__ __device__ constexpr int32_t VisibleKeys(int32_t block_length, int32_t keys, int32_t position) {
  if (block_length == kBidirectional) return keys;
  const int32_t block_end = (position / block_length + 1) * block_length;
  return block_end < keys ? block_end : keys;
}

/// The first key that a window (0: none) leaves to a query at `position` of a segment which begins at `first_position`.
__host__ __device__ constexpr int32_t FirstKey(int32_t window, int32_t block_length, int32_t first_position,
                                               int32_t position) {
  if (window == 0) return 0;
  const int32_t first = (block_length == kBidirectional ? first_position : position) - (window - 1);
  return first > 0 ? first : 0;
}

/// What one block does at a time, for each key head: some queries of one segment over some key tiles. A query is a row
/// and a head of the key head's group; the heads of a row are neighbours: query = row in the segment * group + head.
struct alignas(16) Job {
  int32_t first_row;  ///< Of the segment; this and the next six are the segment's.
  int32_t rows;
  int32_t first_position;
  int32_t keys;
  int32_t first_page;
  int32_t block_length;
  int32_t unseen_key;
  int32_t first_query;
  int32_t queries;
  int32_t visible;     ///< Keys that the last query sees, and so the most that any does.
  int32_t first_tile;  ///< Of keys.
  int32_t end_tile;
  int32_t partial;  ///< First row of the partial results of key head 0, or -1: the job holds all keys, and makes `out`.
};

/// Queries whose chunks are jobs of their own, and have to be merged. Partial results of their chunk c, counted from
/// the first that they see, key head h and query i are in row partial + (c * kv_heads + h) * queries + i.
struct alignas(16) Merge {
  int32_t first_row;
  int32_t first_query;
  int32_t queries;
  int32_t chunks;
  int32_t partial;
  int32_t first_unit;  ///< Units (a query of a key head each) of earlier merges.
};

struct Counts {
  int32_t jobs;
  int32_t merges;
  int32_t merge_units;
};

/// Floats from one row of partial sums to the next: rows begin at multiples of 16 bytes.
__host__ __device__ constexpr int32_t PartialStride(int32_t head_size) { return (head_size + 3) / 4 * 4; }

/// The work of a step, in device memory. Made by LaunchPlan, read by the kernels of every layer.
struct Plan {
  Counts* counts = nullptr;
  Job* jobs = nullptr;               ///< [kJobsMax], by ascending query and key.
  Merge* merges = nullptr;           ///< [kJobsMax]
  int32_t* first_tiles = nullptr;    ///< [kSegmentsMax]: query tiles of earlier segments.
  int32_t* costs_before = nullptr;   ///< [kJobsMax]: key tiles of earlier query tiles.
  float* partial_weights = nullptr;  ///< [partial rows, 2]: the largest score, and the sum of the weights.
  float* partial_sums = nullptr;     ///< [partial rows, PartialStride(head size)]: of weight * value.
};

inline constexpr int32_t kJobsMax = 1 << 15;
inline constexpr int32_t kSegmentsMax = 1 << 14;

enum class Split : uint8_t {
  kAuto,    ///< Queries whose keys would keep one block busy long after the others.
  kNever,   ///< For tests, as
  kAlways,  ///< this: whenever there is more than one chunk, and room.
};

struct PlanRequest {
  const AttentionSegment* segments = nullptr;
  int32_t segments_count = 0;
  Divisor group;  ///< Query heads of a key head.
  int32_t window = 0;
  int32_t kv_heads = 1;
  int32_t tile_queries = 0;      ///< Of a job, at most.
  int32_t blocks = 0;            ///< Of the kernel that does the jobs: block b does items b, b + blocks, ...
  int32_t partial_rows_max = 0;  ///< Room for partial results.
  Split split = Split::kAuto;
};

/// Derives the step's work from the segments. Segments without rows are skipped.
cudaError_t LaunchPlan(cudaStream_t stream, const PlanRequest& request, const Plan& plan);

}  // namespace quicksilver::attention
