#include "kernels/cpu/host_routing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/check_routing.h"
#include "kernels/cpu/host_matrix.h"

namespace quicksilver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
using PerExpert = std::array<T, kExpertsMax>;

struct RowScores {
  PerExpert<float> plain;
  PerExpert<float> biased;  // What experts are chosen by.
};

/// A NaN is the lowest of all.
float Rank(float score) { return std::isnan(score) ? -kInfinity : score; }

void ScoreRow(const ConstMatrix& logits, int64_t n, const RoutingRule& rule, RowScores& scores) {
  if (rule.score == RoutingRule::Score::kSoftmax) {
    float largest = -kInfinity, sum = 0.0f;
    for (int32_t e = 0; e < rule.experts; ++e) largest = std::max(largest, Load(logits, n, e));
    for (int32_t e = 0; e < rule.experts; ++e) {
      scores.plain[e] = std::exp(Load(logits, n, e) - largest);
      sum += scores.plain[e];
    }
    for (int32_t e = 0; e < rule.experts; ++e) scores.plain[e] /= sum;
  } else {
    for (int32_t e = 0; e < rule.experts; ++e) scores.plain[e] = 1.0f / (1.0f + std::exp(-Load(logits, n, e)));
  }
  for (int32_t e = 0; e < rule.experts; ++e) {
    scores.biased[e] = scores.plain[e] + (rule.bias == nullptr ? 0.0f : rule.bias[e]);
  }
}

/// The `count` indices below `of` with the largest values among those that are admitted, in descending order.
void TakeBest(const PerExpert<float>& values, int32_t of, int32_t count, PerExpert<bool> admitted, int32_t* best) {
  for (int32_t i = 0; i < count; ++i) {
    best[i] = -1;
    for (int32_t e = 0; e < of; ++e) {
      if (admitted[e] && (best[i] < 0 || Rank(values[e]) > Rank(values[best[i]]))) best[i] = e;
    }
    admitted[best[i]] = false;
  }
}

PerExpert<bool> All(int32_t experts) {
  PerExpert<bool> all = {};
  std::fill_n(all.begin(), experts, true);
  return all;
}

/// Experts of the groups whose two best together are best.
PerExpert<bool> AdmittedByGroups(const PerExpert<float>& biased, const RoutingRule& rule) {
  const int32_t size = rule.experts / rule.groups;
  PerExpert<float> sums;
  for (int32_t g = 0; g < rule.groups; ++g) {
    float best = -kInfinity, second = -kInfinity;
    for (int32_t e = g * size; e < (g + 1) * size; ++e) {
      const float score = Rank(biased[e]);
      second = std::max(second, std::min(best, score));
      best = std::max(best, score);
    }
    sums[g] = best + second;
  }
  std::array<int32_t, kExpertsMax> kept;
  TakeBest(sums, rule.groups, rule.groups_kept, All(rule.groups), kept.data());
  PerExpert<bool> admitted = {};
  for (int32_t i = 0; i < rule.groups_kept; ++i) std::fill_n(admitted.begin() + kept[i] * size, size, true);
  return admitted;
}

/// Experts whose best score over rows [first, end) is among the best.
PerExpert<bool> AdmittedByPool(const ConstMatrix& logits, int64_t first, int64_t end, const RoutingRule& rule) {
  PerExpert<float> best;
  best.fill(-kInfinity);
  RowScores scores;
  for (int64_t n = first; n < end; ++n) {
    ScoreRow(logits, n, rule, scores);
    for (int32_t e = 0; e < rule.experts; ++e) best[e] = std::max(best[e], Rank(scores.biased[e]));
  }
  std::array<int32_t, kExpertsMax> kept;
  TakeBest(best, rule.experts, rule.pool_experts, All(rule.experts), kept.data());
  PerExpert<bool> admitted = {};
  for (int32_t i = 0; i < rule.pool_experts; ++i) admitted[kept[i]] = true;
  return admitted;
}

void WeighRow(const RowScores& scores, const RoutingRule& rule, DType activation, const int32_t* experts,
              float* weights) {
  float sum = 0.0f;
  for (int32_t j = 0; j < rule.chosen; ++j) {
    weights[j] = rule.weigh_biased ? scores.biased[experts[j]] : scores.plain[experts[j]];
    sum += weights[j];
  }
  for (int32_t j = 0; j < rule.chosen; ++j) {
    if (rule.normalise) weights[j] /= sum + 1e-20f;
    weights[j] *= rule.scale;
    if (rule.expert_scale != nullptr) weights[j] *= rule.expert_scale[experts[j]];
    if (rule.round_weights) weights[j] = RoundTo(activation, weights[j]);
  }
}

}  // namespace

void RouteOnHost(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, DType activation,
                 int32_t* experts, float* weights) {
  CheckRouting(layout, logits, rule, activation);
  std::fill_n(experts, logits.rows * rule.chosen, -1);
  std::fill_n(weights, logits.rows * rule.chosen, 0.0f);
  for (int32_t s = 0; s < layout.segments_count; ++s) {
    const AttentionSegment& segment = layout.segments[s];
    RowScores scores;
    PerExpert<bool> admitted = All(rule.experts);
    int64_t pool_end = segment.first_row;
    for (int64_t n = segment.first_row; n < segment.first_row + segment.rows; ++n) {
      if (rule.pool_block > 0 && n == pool_end) {
        const int64_t position = segment.first_position + n - segment.first_row;
        pool_end =
            std::min<int64_t>(n + rule.pool_block - position % rule.pool_block, segment.first_row + segment.rows);
        admitted = AdmittedByPool(logits, n, pool_end, rule);
      }
      ScoreRow(logits, n, rule, scores);
      if (rule.groups > 0) admitted = AdmittedByGroups(scores.biased, rule);
      TakeBest(scores.biased, rule.experts, rule.chosen, admitted, experts + n * rule.chosen);
      WeighRow(scores, rule, activation, experts + n * rule.chosen, weights + n * rule.chosen);
    }
  }
}

}  // namespace quicksilver
