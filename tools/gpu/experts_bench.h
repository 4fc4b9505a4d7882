#pragma once

#include "absl/status/statusor.h"
#include "tools/gpu/bench_cases.h"
#include "tools/gpu/timed_ops.h"

namespace quicksilver {

struct ExpertsTimes {
  double seconds = 0.0;  ///< Median of device events: Ops::Route and Ops::ExpertMlp.
  int64_t touched = 0;   ///< Experts that some row went to: whose weights have to be read.
};

/// Times the routed experts of one layer, recorded. Rows are routed by random logits, each for itself, which touches
/// as many experts as any routing would.
absl::StatusOr<ExpertsTimes> TimeExperts(TimedOps& ops, const ExpertsCase& of, int rounds);

}  // namespace quicksilver
