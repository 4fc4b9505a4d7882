#pragma once

#include "absl/status/statusor.h"
#include "tools/gpu/bench_cases.h"
#include "tools/gpu/timed_ops.h"

namespace quicksilver {

/// Medians of device events, in seconds.
struct CandidatesTimes {
  double candidates = 0.0;  ///< Ops::Candidates, greedy, without top lists.
  double product = 0.0;     ///< The same LM head as one product that writes all logits, as floats.
};

/// Times the reduction of an LM head's logits against the product alone, turn by turn, both recorded.
absl::StatusOr<CandidatesTimes> TimeCandidates(TimedOps& ops, const CandidatesCase& of, int rounds);

}  // namespace quicksilver
