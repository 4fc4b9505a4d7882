#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/attention_kernels.h"

// How blocks share the work of a plan. An item is a job of one key head; the key heads of a job are neighbours, because
// their keys are neighbours in memory.
namespace quicksilver::attention {

/// The item that this block does in its turn number `turn`. Every other turn goes backwards, so that blocks which have
/// had the shorter items of a turn get the longer ones of the next: in a prefill, items grow with the position.
__device__ __forceinline__ int32_t ItemOf(int32_t turn) {
  const int32_t block = static_cast<int32_t>(blockIdx.x), blocks = static_cast<int32_t>(gridDim.x);
  return turn * blocks + (turn % 2 == 0 ? block : blocks - 1 - block);
}

__device__ __forceinline__ const Job& JobOf(const Arguments& a, int32_t item) {
  return a.plan.jobs[a.kv_heads.Quotient(item)];
}

__device__ __forceinline__ int32_t KeyHeadOf(const Arguments& a, int32_t item) {
  return item - a.kv_heads.Quotient(item) * a.kv_heads.divisor;
}

/// Element `column` of head `query` of the segment: a query of key head `kv_head`.
__device__ __forceinline__ uint64_t ElementByte(const Arguments& a, int32_t first_row, int32_t query, int32_t kv_head,
                                                int32_t column, int32_t element_bytes, uint32_t stride_bytes) {
  const int32_t row = a.group.Quotient(query);
  const int32_t head = kv_head * a.group.divisor + query - row * a.group.divisor;
  return static_cast<uint64_t>(static_cast<uint32_t>(first_row + row)) * stride_bytes +
         static_cast<uint32_t>((head * a.head_size + column) * element_bytes);
}

/// Where the cache keeps `position`, of a segment whose pages begin at `first_page` of the table.
__device__ __forceinline__ uint32_t SlotOf(const Arguments& a, int32_t first_page, int32_t position) {
  const int32_t page = a.page_size.Quotient(position);
  return static_cast<uint32_t>((a.page_table[first_page + page] - page) * a.page_size.divisor + position);
}

/// The key tile that ends the chunk of `tile`.
__device__ __forceinline__ int32_t ChunkEndTile(int32_t tile) {
  return ChunkStart(ChunkOf(tile * kTileKeys) + 1) / kTileKeys;
}

/// The first row of partial results of a job's key head.
__device__ __forceinline__ int64_t PartialRow(const Job& job, int32_t kv_head) {
  return job.partial + static_cast<int64_t>(kv_head) * job.queries;
}

}  // namespace quicksilver::attention
