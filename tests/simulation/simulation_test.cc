#include "tests/simulation/simulation.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace quicksilver::simulation {
namespace {

// 10,000 seeds in shards that can run side by side.
constexpr uint64_t kShards = 20;
constexpr uint64_t kSeedsOfShard = 500;

volatile std::sig_atomic_t running_seed = 0;

// A CHECK of the code under test ends the process: say which seed it was.
void OnAbort(int) {
  std::fprintf(stderr, "aborted in seed %ld\nreplay: simulate --seed %ld\n", static_cast<long>(running_seed),
               static_cast<long>(running_seed));
}

class ChaosTest : public testing::TestWithParam<uint64_t> {};

TEST_P(ChaosTest, NothingIsLostRepeatedOrChangedAndAllEndsOnceTheFaultsHeal) {
  std::signal(SIGABRT, OnAbort);
  Counters reached;
  for (uint64_t seed = GetParam() * kSeedsOfShard + 1; seed <= (GetParam() + 1) * kSeedsOfShard; ++seed) {
    running_seed = static_cast<std::sig_atomic_t>(seed);
    const RunResult result = RunPlan(MakePlan(seed), Mutant::kNone, /*tracing=*/false);
    reached.Add(result.counters);
    if (result.violation) FAIL() << StoryOf(seed, Mutant::kNone).value_or("passes when it is run again");
  }
  // Schedules that never get there are no use.
  EXPECT_GT(reached.completed, 10 * kSeedsOfShard);
  EXPECT_GT(reached.lost, kSeedsOfShard);
  EXPECT_GT(reached.moved, kSeedsOfShard / 20);
  EXPECT_GT(reached.resumed, kSeedsOfShard / 2);
  EXPECT_GT(reached.stale, kSeedsOfShard);
  EXPECT_GT(reached.preemptions, kSeedsOfShard / 5);
  EXPECT_GT(reached.cached_tokens, 10 * kSeedsOfShard);
  EXPECT_GT(reached.paced_steps, kSeedsOfShard / 5);
  EXPECT_GT(reached.targets_met, 10u);
  EXPECT_GT(reached.deadlines, kSeedsOfShard / 10);
  EXPECT_GT(reached.overloaded, kSeedsOfShard / 10);
  EXPECT_GT(reached.limited, kSeedsOfShard / 20);
  EXPECT_GT(reached.worker_lost, 10u);
  EXPECT_GT(reached.numerical, 10u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChaosTest, testing::Range<uint64_t>(0, kShards));

TEST(SimulationTest, EqualSeedsGiveEqualRuns) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const RunResult first = RunPlan(MakePlan(seed), Mutant::kNone, /*tracing=*/false);
    const RunResult second = RunPlan(MakePlan(seed), Mutant::kNone, /*tracing=*/true);
    EXPECT_EQ(first.digest, second.digest) << "seed " << seed;
    EXPECT_EQ(first.events, second.events) << "seed " << seed;
  }
}

TEST(SimulationTest, LeavingOutARequestChangesNothingOfTheOthersPlans) {
  const Plan plan = MakePlan(1);
  Plan smaller = plan;
  smaller.requests.erase(smaller.requests.begin());
  for (size_t i = 0; i < smaller.requests.size(); ++i) {
    EXPECT_EQ(Describe(smaller.requests[i]), Describe(plan.requests[i + 1]));
    EXPECT_EQ(SeedOf(smaller, smaller.requests[i]), SeedOf(plan, plan.requests[i + 1]));
  }
}

}  // namespace
}  // namespace quicksilver::simulation
