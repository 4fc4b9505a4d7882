#pragma once

#include <cstdint>

#include "common/philox.h"

// The rules that choose which masked rows of one block commit in a step, as predicates of one row, so that a thread a
// row can ask them on a device. `rank[i]` belongs to the block's i-th masked row in ascending position: larger is
// better, never NaN; -inf loses to everything but another -inf. Ties: the lowest position. IsSelected() (open_block.h)
// puts them together and chooses at least one row when there is one.

namespace quicksilver {

/// As v1::Policy, which says what each one does. The first eight decide on the ranks of a block's masked rows alone,
/// and may run on a device without the host.
enum class Policy : int32_t {
  kStatic,
  kDynamic,
  kSequential,
  kThreshold,
  kFactor,
  kEntropyBound,
  kEntropySum,
  kHierarchical,
  kHost,  ///< In a BlockRule alone: the rows are merged and reported, and the host decides.
  kCredit,
  kKlass,
  kOrigin,
  kMaskgitPlus,
  kTopkMargin,
  kEntropy,
  kQuotaThreshold,
  kTokenEdit,
  kInsertDelete,
  kWino,
  kRemdm,
  kVariableLength,
  kMultiBlock,
  kSubBlock,
  kRenoise,
  kAutoregressive,
};

/// Tokens that step `step` writes when `masks` positions are spread over `steps` steps: the sum is `masks`, counts
/// differ by at most one, the larger ones come first. steps >= 1; 0 for a step past the last.
QS_HOST_DEVICE inline int32_t ScheduledCount(int32_t masks, int32_t steps, int32_t step) {
  if (step >= steps) return 0;
  return masks / steps + (step < masks % steps ? 1 : 0);
}

/// True for the policies that spread a block's masks over its steps.
QS_HOST_DEVICE inline bool HasSchedule(Policy policy) {
  return policy == Policy::kStatic || policy == Policy::kDynamic || policy == Policy::kSequential;
}

/// The masked rows of one block.
struct RankedRows {
  const float* rank = nullptr;      ///< [rows]
  const int32_t* offset = nullptr;  ///< [rows] ascending: where they stand, from any one position. kHierarchical alone.
  int32_t rows = 0;
};

/// True when row j goes before row i.
QS_HOST_DEVICE inline bool IsBetter(const float* rank, int32_t j, int32_t i) {
  return rank[j] > rank[i] || (rank[j] == rank[i] && j < i);
}

/// True when fewer than `count` rows are better than row i.
QS_HOST_DEVICE inline bool IsAmongBest(const float* rank, int32_t rows, int32_t i, int32_t count) {
  int32_t better = 0;
  for (int32_t j = 0; j < rows && better < count; ++j) better += IsBetter(rank, j, i) ? 1 : 0;
  return better < count;
}

/// SDAR's and LLaDA2's dynamic rule: every row above `threshold` if these are at least `count`, else the `count` best.
/// `above`: how many rows rank above the threshold.
QS_HOST_DEVICE inline bool IsSelectedDynamically(const float* rank, int32_t rows, int32_t i, float threshold,
                                                 int32_t count, int32_t above) {
  if (above < count || above == 0) return IsAmongBest(rank, rows, i, count > 0 ? count : 1);
  return rank[i] > threshold;
}

/// Fast-dLLM's and dInfer's rule, where `count` is 1: the `count` best rows, and every other one at or above
/// `threshold`. (dInfer's bound, min(threshold, best - 1e-5), also takes rows that tie with the best within 1e-5.)
QS_HOST_DEVICE inline bool IsSelectedByThreshold(const float* rank, int32_t rows, int32_t i, float threshold,
                                                 int32_t count) {
  return rank[i] >= threshold || IsAmongBest(rank, rows, i, count);
}

/// Fast-dLLM's factor rule, but for the best row, which it takes always: the longest prefix by rank of which row n,
/// from 1, has c(n) >= 1 - factor / (n + 1). Since c falls and the bound rises, a row that fails ends the prefix.
QS_HOST_DEVICE inline bool IsSelectedByFactor(const float* rank, int32_t rows, int32_t i, float factor) {
  int32_t place = 1;
  for (int32_t j = 0; j < rows; ++j) place += IsBetter(rank, j, i) ? 1 : 0;
  return rank[i] >= 1.0f - factor / static_cast<float>(place + 1);
}

/// Ranks are negative entropies H. The longest prefix by rank whose sum of H stays within `bound`; the rules take the
/// best row always. Of the sum, EB-Sampler leaves out the largest, which is the last (`inclusive` false, sum <= bound);
/// SDAR's rule does not (true, sum < bound).
QS_HOST_DEVICE inline bool IsSelectedByEntropy(const float* rank, int32_t rows, int32_t i, float bound,
                                               bool inclusive) {
  double before = 0.0;
  for (int32_t j = 0; j < rows; ++j) {
    if (IsBetter(rank, j, i)) before -= rank[j];
  }
  return inclusive ? before - rank[i] < bound : before <= bound;
}

/// True when row i is the best of its run of masked rows that stand side by side. Ties: the lowest position.
QS_HOST_DEVICE inline bool IsBestOfRun(const RankedRows& block, int32_t i) {
  for (int32_t j = i; j > 0 && block.offset[j - 1] + 1 == block.offset[j]; --j) {
    if (IsBetter(block.rank, j - 1, i)) return false;
  }
  for (int32_t j = i + 1; j < block.rows && block.offset[j - 1] + 1 == block.offset[j]; ++j) {
    if (IsBetter(block.rank, j, i)) return false;
  }
  return true;
}

/// dInfer's hierarchical rule, but for the best of all rows, which it takes always: every row above `threshold`, and
/// the best of each run if it is above `low_threshold`.
QS_HOST_DEVICE inline bool IsSelectedHierarchically(const RankedRows& block, int32_t i, float threshold,
                                                    float low_threshold) {
  return block.rank[i] > threshold || (block.rank[i] > low_threshold && IsBestOfRun(block, i));
}

}  // namespace quicksilver
