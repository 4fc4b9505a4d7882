#pragma once

#include <cstdint>
#include <limits>

#include "common/philox.h"
#include "kernels/policy/merge_candidates.h"
#include "kernels/policy/selection.h"

// One sequence's open block as a step sees it: written once, run by the CPU's Sequence and by the devices.

namespace quicksilver {

/// What rows of a block are ranked by.
enum class Remasking : int32_t { kLowConfidence, kRandom };

/// As v1::Confidence.
enum class Measure : int32_t { kProbability, kMargin, kEntropy };

/// How the masked rows of an open block are decided. Plain data.
struct BlockRule {
  SamplingRule sampling;
  bool raw_confidence = false;  ///< Confidence of the raw softmax even when a token was drawn with noise.
  Policy policy = Policy::kStatic;
  Remasking remasking = Remasking::kLowConfidence;
  Measure measure = Measure::kProbability;  ///< What low-confidence remasking ranks by.
  float threshold = 0.0f;
  float low_threshold = 0.0f;  ///< kHierarchical
  float factor = 1.0f;         ///< kFactor
  float entropy_bound = 0.0f;  ///< kEntropyBound, kEntropySum: in nats; their ranks are negative entropies.
  int32_t masks = 0;           ///< The schedule spreads this many tokens …
  int32_t steps = 1;           ///< … over this many forwards of the block.
  /// A forward commits at least so many rows, or all there are, whatever the policy says: keeps up a pace. 0: off.
  int32_t commits_min = 0;
  int32_t top_reported = 0;  ///< The host wants so many alternatives of every row; at most kTopReportedMax.
};

/// True when the rows of a block need the ranks' top lists besides their candidates.
QS_HOST_DEVICE inline bool NeedsTopLogits(const BlockRule& rule) {
  return rule.top_reported > 0 || NeedsTopLogits(rule.sampling);
}

/// Ascending token ids.
struct TokenList {
  const TokenId* ids = nullptr;
  int32_t count = 0;
};

QS_HOST_DEVICE inline bool Contains(const TokenList& ascending, TokenId id) {
  int32_t low = 0, high = ascending.count;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (ascending.ids[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < ascending.count && ascending.ids[low] == id;
}

/// The least number of tokens that the block's forward number `forwards` commits: what the schedule asks for, where
/// the policy has one, and commits_min; at least 1.
QS_HOST_DEVICE inline int32_t ScheduledNow(const BlockRule& rule, int32_t forwards) {
  const int32_t scheduled = HasSchedule(rule.policy) ? ScheduledCount(rule.masks, rule.steps, forwards) : 1;
  const int32_t count = scheduled > rule.commits_min ? scheduled : rule.commits_min;
  return count > 1 ? count : 1;
}

/// Whether row i commits. `count`: ScheduledNow(), so many of the best commit in any case, one at least; `above`: how
/// many rows rank above the rule's threshold, needed by kDynamic alone.
QS_HOST_DEVICE inline bool IsSelected(const BlockRule& rule, const RankedRows& block, int32_t i, int32_t count,
                                      int32_t above) {
  switch (rule.policy) {
    case Policy::kStatic:
      return IsAmongBest(block.rank, block.rows, i, count);
    case Policy::kDynamic:
      return IsSelectedDynamically(block.rank, block.rows, i, rule.threshold, count, above);
    case Policy::kSequential:
      return i < count;
    case Policy::kThreshold:
      return IsSelectedByThreshold(block.rank, block.rows, i, rule.threshold, count);
    case Policy::kFactor:
      return IsSelectedByFactor(block.rank, block.rows, i, rule.factor) ||
             IsAmongBest(block.rank, block.rows, i, count);
    case Policy::kEntropyBound:
    case Policy::kEntropySum:
      return IsSelectedByEntropy(block.rank, block.rows, i, rule.entropy_bound, rule.policy == Policy::kEntropySum) ||
             IsAmongBest(block.rank, block.rows, i, count);
    case Policy::kHierarchical:
      return IsSelectedHierarchically(block, i, rule.threshold, rule.low_threshold) ||
             IsAmongBest(block.rank, block.rows, i, count);
    default:
      return false;  // Decided by the host.
  }
}

/// What a row ranks by: its measure, or a draw; the policies that bound an entropy rank by it whatever the measure is.
/// `distrusted`: tokens that rank last.
QS_HOST_DEVICE inline float RankOf(const BlockRule& rule, const RowChoice& choice, const DrawPlace& place,
                                   const TokenList& distrusted) {
  if (Contains(distrusted, choice.token)) return -std::numeric_limits<float>::infinity();
  if (rule.policy == Policy::kEntropyBound || rule.policy == Policy::kEntropySum) return -choice.entropy;
  if (rule.remasking == Remasking::kRandom) return static_cast<float>(UniformDraw(place, 0, DrawPurpose::kConfidence));
  switch (rule.measure) {
    case Measure::kProbability:
      return choice.confidence;
    case Measure::kMargin:
      return choice.margin;
    case Measure::kEntropy:
      return -choice.entropy;
  }
  return choice.confidence;
}

}  // namespace quicksilver
