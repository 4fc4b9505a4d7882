#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "kernels/cuda/ptx.h"

namespace quicksilver::attention {

// Every operation on the way to an output is spelled out with its rounding, so that two kernels which do the same sums
// get the same bits: a compiler may otherwise fuse a product and a sum in one and not in the other.

__device__ __forceinline__ float MinusInfinity() { return -INFINITY; }

/// Scores in units of ln 2: for the tensor-core kernels, where one instruction gives 2^x to 2 units in the last place.
struct BinaryScores {
  static __device__ __forceinline__ float Weight(float score) { return Exp2Approximate(score); }
};

/// Scores as they are.
struct NaturalScores {
  static __device__ __forceinline__ float Weight(float score) { return expf(score); }
};

/// What the sums over earlier keys and those over a chunk are multiplied by when they are added. An unseen chunk leaves
/// every bit alone, whatever its sums hold.
struct MergeFactors {
  bool seen;
  float before;
  float chunk;
};

/// Adds a chunk to the softmax of a query over earlier keys. A total of 0 says that no key was seen.
template <typename Scores>
__device__ __forceinline__ MergeFactors MergeChunk(float chunk_largest, float chunk_total, float& largest,
                                                   float& total) {
  if (chunk_total == 0.0f) return {false, 1.0f, 0.0f};
  const float both = fmaxf(largest, chunk_largest);
  const MergeFactors factors = {true, Scores::Weight(__fadd_rn(largest, -both)),
                                Scores::Weight(__fadd_rn(chunk_largest, -both))};
  largest = both;
  total = __fmaf_rn(total, factors.before, __fmul_rn(chunk_total, factors.chunk));
  return factors;
}

__device__ __forceinline__ float MergeSum(const MergeFactors& factors, float sum, float chunk_sum) {
  return factors.seen ? __fmaf_rn(sum, factors.before, __fmul_rn(chunk_sum, factors.chunk)) : sum;
}

/// The largest score so far as something that can be subtracted from any score: a query that has seen no key yet has
/// -inf, and its scores are all -inf.
__device__ __forceinline__ float Reference(float largest) { return largest == MinusInfinity() ? 0.0f : largest; }

}  // namespace quicksilver::attention
