#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulation/history.h"
#include "tests/simulation/mutant.h"
#include "tests/simulation/network.h"
#include "tests/simulation/plan.h"
#include "tests/simulation/sim_coordinator.h"
#include "tests/simulation/sim_group.h"
#include "tests/simulation/world.h"

namespace quicksilver::simulation {

/// What a run came to.
struct RunResult {
  std::optional<Violation> violation;
  std::vector<TraceLine> trace;  ///< With tracing.
  uint64_t digest = 0;
  uint64_t events = 0;
  absl::Duration healed;  ///< When the last fault was over.
  absl::Duration ended;
  Counters counters;
};

/// Runs a plan: chaos first, in which nothing wrong may happen; then all faults heal, everything must come to its end,
/// and nothing may be left.
RunResult RunPlan(const Plan& plan, Mutant mutant, bool tracing);

/// Of a plan that fails: leaves out faults and requests as long as it still breaks the same rule.
Plan Shrink(const Plan& plan, Mutant mutant, const std::string& rule);

/// Runs a seed. Nothing, or a short story: what broke, how to replay it, what is left of the plan, the last events.
std::optional<std::string> StoryOf(uint64_t seed, Mutant mutant);

}  // namespace quicksilver::simulation
