#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <set>
#include <string>
#include <vector>

#include "tests/simulation/simulation.h"

namespace quicksilver::simulation {
namespace {

using ::testing::HasSubstr;

struct Planted {
  friend void PrintTo(const Planted& planted, std::ostream* out) { *out << planted.name; }

  Mutant mutant;
  const char* name;
  std::set<std::string> rules;  // One of them must be what it breaks.
  uint64_t seeds_max;           // It is found within so many.
};

// Tests of the tests: a simulation that does not find these bugs could not be trusted with others.
class MutantTest : public testing::TestWithParam<Planted> {};

TEST_P(MutantTest, IsFoundAndToldAsAStory) {
  const Planted& planted = GetParam();
  for (uint64_t seed = 1; seed <= planted.seeds_max; ++seed) {
    const std::optional<Violation> violation = RunPlan(MakePlan(seed), planted.mutant, /*tracing=*/false).violation;
    if (!violation) continue;
    const std::string story = *StoryOf(seed, planted.mutant);
    std::cout << planted.name << " is found by seed " << seed << ":\n" << story << "\n";
    EXPECT_TRUE(planted.rules.contains(violation->rule)) << violation->rule << ": " << violation->text;
    EXPECT_THAT(story, HasSubstr("replay: simulate --seed"));
    EXPECT_THAT(story, HasSubstr("VIOLATION"));
    EXPECT_LE(Shrink(MakePlan(seed), planted.mutant, violation->rule).faults.size(), 4u) << "hardly shrunk";
    return;
  }
  FAIL() << planted.name << " is not found within " << planted.seeds_max << " seeds";
}

INSTANTIATE_TEST_SUITE_P(
    Planted, MutantTest,
    testing::Values(Planted{Mutant::kLoseFinalToken, "LostFinalToken", {"failure", "bytes"}, 5},
                    Planted{Mutant::kFinishTwice, "DoubleFinish", {"second end", "late"}, 10},
                    Planted{Mutant::kLeakPages, "LeakedPages", {"residue", "liveness", "starvation"}, 10},
                    Planted{Mutant::kStarveTenant, "StarvedTenant", {"fairness"}, 500},
                    Planted{Mutant::kAcceptStaleEpoch, "StaleEpochAccepted", {"fencing", "late"}, 50},
                    Planted{Mutant::kForgetBlockStep, "LostBlockStep", {"bytes", "failure"}, 100},
                    Planted{Mutant::kSharePrefixes, "PrefixSharedOverTenants", {"pages"}, 20},
                    Planted{Mutant::kShareUnsound, "UnsoundPagesShared", {"pages"}, 200},
                    Planted{Mutant::kIgnoreDeadline, "DeadlineIgnored", {"deadline", "target"}, 10}),
    [](const auto& planted) { return planted.param.name; });

}  // namespace
}  // namespace quicksilver::simulation
