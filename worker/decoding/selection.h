#pragma once

#include <cstdint>

#include "common/philox.h"

// The rules that choose which masked rows of one block commit in a step. Plain arrays over the block's masked rows in
// ascending position: `rank` is what a rule ranks by (larger is better, never NaN; -inf loses to everything but
// another -inf), `commit` is set to 1 on the chosen rows and left alone elsewhere. Each chooses at least one row when
// there is one. Ties: the lowest position.

namespace quicksilver {

/// Tokens that step `step` writes when `masks` positions are spread over `steps` steps: the sum is `masks`, counts
/// differ by at most one, the larger ones come first. steps >= 1; 0 for a step past the last.
QS_HOST_DEVICE inline int32_t ScheduledCount(int32_t masks, int32_t steps, int32_t step) {
  if (step >= steps) return 0;
  return masks / steps + (step < masks % steps ? 1 : 0);
}

/// The `count` best rows; all when there are fewer.
QS_HOST_DEVICE inline void SelectBest(const float* rank, int32_t rows, int32_t count, uint8_t* commit) {
  for (int32_t n = 0; n < count && n < rows; ++n) {
    int32_t best = -1;
    for (int32_t i = 0; i < rows; ++i) {
      if (commit[i] == 0 && (best < 0 || rank[i] > rank[best])) best = i;
    }
    if (best < 0) return;
    commit[best] = 1;
  }
}

/// SDAR's and LLaDA2's dynamic rule: every row above `threshold` if these are at least `count`, else the `count` best.
QS_HOST_DEVICE inline void SelectDynamic(const float* rank, int32_t rows, float threshold, int32_t count,
                                         uint8_t* commit) {
  int32_t above = 0;
  for (int32_t i = 0; i < rows; ++i) above += rank[i] > threshold ? 1 : 0;
  if (above < count || above == 0) return SelectBest(rank, rows, count > 0 ? count : 1, commit);
  for (int32_t i = 0; i < rows; ++i) {
    if (rank[i] > threshold) commit[i] = 1;
  }
}

/// Fast-dLLM's rule: the best row, and every other one at or above `threshold`.
QS_HOST_DEVICE inline void SelectThreshold(const float* rank, int32_t rows, float threshold, uint8_t* commit) {
  SelectBest(rank, rows, 1, commit);
  for (int32_t i = 0; i < rows; ++i) {
    if (rank[i] >= threshold) commit[i] = 1;
  }
}

/// The first `count` rows.
QS_HOST_DEVICE inline void SelectFirst(int32_t rows, int32_t count, uint8_t* commit) {
  for (int32_t i = 0; i < rows && i < (count > 0 ? count : 1); ++i) commit[i] = 1;
}

}  // namespace quicksilver
