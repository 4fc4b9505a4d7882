#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "worker/model/model_spec.h"
#include "worker/model/sharding.h"
#include "worker/service/machine.h"

namespace quicksilver {

/// What a rank is about to allocate, in bytes, worked out before it does. Pure.
struct MemoryPlan {
  int64_t weights = 0;
  int64_t workspace = 0;  ///< Activations of the largest step and what one step's kernels need besides.
  int64_t kv_page = 0;    ///< One page in all layers.
  int64_t pages = 0;
  int64_t budget = 0;  ///< What all of it may take; 0: not bounded.

  int64_t kv() const { return kv_page * pages; }
  int64_t total() const { return weights + workspace + kv(); }
};

/// `fraction` of the device's memory is the budget. pages: 0 on a GPU means all that is left.
MemoryPlan PlanMemory(const ModelSpec& spec, const Shard& shard, const Precision& precision, const Machine& machine,
                      double fraction, int32_t step_rows_max, int32_t page_size, int64_t pages);

/// ResourceExhausted, with every number and what to change, when the plan does not fit its budget.
absl::Status CheckMemory(const MemoryPlan& plan, const Machine& machine, double fraction);

}  // namespace quicksilver
