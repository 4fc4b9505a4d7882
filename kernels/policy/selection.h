#pragma once

#include <cstdint>

#include "common/philox.h"

// The rules that choose which masked rows of one block commit in a step, as predicates of one row, so that a thread a
// row can ask them on a device. `rank[i]` belongs to the block's i-th masked row in ascending position: larger is
// better, never NaN; -inf loses to everything but another -inf. Each rule chooses at least one row when there is one.
// Ties: the lowest position.

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

/// True when fewer than `count` rows are better than row i.
QS_HOST_DEVICE inline bool IsAmongBest(const float* rank, int32_t rows, int32_t i, int32_t count) {
  int32_t better = 0;
  for (int32_t j = 0; j < rows && better < count; ++j) {
    better += rank[j] > rank[i] || (rank[j] == rank[i] && j < i) ? 1 : 0;
  }
  return better < count;
}

/// SDAR's and LLaDA2's dynamic rule: every row above `threshold` if these are at least `count`, else the `count` best.
/// `above`: how many rows rank above the threshold.
QS_HOST_DEVICE inline bool IsSelectedDynamically(const float* rank, int32_t rows, int32_t i, float threshold,
                                                 int32_t count, int32_t above) {
  if (above < count || above == 0) return IsAmongBest(rank, rows, i, count > 0 ? count : 1);
  return rank[i] > threshold;
}

/// Fast-dLLM's rule, where `count` is 1: the `count` best rows, and every other one at or above `threshold`.
QS_HOST_DEVICE inline bool IsSelectedByThreshold(const float* rank, int32_t rows, int32_t i, float threshold,
                                                 int32_t count) {
  return rank[i] >= threshold || IsAmongBest(rank, rows, i, count);
}

/// Whether row i commits. `count`: ScheduledNow(), at least 1; `above` as above, needed by kDynamic alone.
QS_HOST_DEVICE inline bool IsSelected(Policy policy, const float* rank, int32_t rows, int32_t i, float threshold,
                                      int32_t count, int32_t above) {
  switch (policy) {
    case Policy::kStatic:
      return IsAmongBest(rank, rows, i, count);
    case Policy::kDynamic:
      return IsSelectedDynamically(rank, rows, i, threshold, count, above);
    case Policy::kSequential:
      return i < count;
    case Policy::kThreshold:
      return IsSelectedByThreshold(rank, rows, i, threshold, count);
    default:
      return false;
  }
  return false;
}

}  // namespace quicksilver
