#pragma once

#include <algorithm>

#include "common/check.h"
#include "kernels/ops.h"

namespace quicksilver {

/// What Ops::Route requires of its arguments.
inline void CheckRouting(const StepLayout& layout, const ConstMatrix& logits, const RoutingRule& rule,
                         DType activation) {
  CHECK(rule.experts >= 1 && rule.experts <= kExpertsMax && logits.cols == rule.experts);
  CHECK(rule.chosen >= 1 && rule.chosen <= std::min(rule.experts, kChosenExpertsMax));
  CHECK(logits.rows == layout.rows && (logits.dtype == DType::kF32 || logits.dtype == activation));
  CHECK(rule.groups == 0 || rule.pool_block == 0);
  if (rule.groups > 0) {
    CHECK(rule.experts % rule.groups == 0 && rule.experts / rule.groups >= 2 && rule.groups_kept <= rule.groups);
    CHECK(rule.groups_kept * (rule.experts / rule.groups) >= rule.chosen);
  }
  if (rule.pool_block > 0) CHECK(rule.pool_experts >= rule.chosen && rule.pool_experts <= rule.experts);
}

}  // namespace quicksilver
