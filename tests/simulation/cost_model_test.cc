#include "tests/simulation/cost_model.h"

#include <gtest/gtest.h>

namespace quicksilver::simulation {
namespace {

void Quietly(int64_t) {}

CostOptions Small() {
  CostOptions options;
  options.groups = 20;
  options.requests = 4000;
  options.prefixes = 200;
  return options;
}

TEST(CostModelTest, FiveTimesTheCapacityCostsNoGoodputAndRefusesAtOnce) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    CostOptions options = Small();
    options.requests = 30000;
    options.load = 5;
    options.seed = seed;
    const CostReport report = RunCostModel(options, Quietly);
    EXPECT_GE(report.goodput, 0.9 * report.capacity) << report.ToString();
    EXPECT_EQ(report.completed + report.refused_at_once + report.refused_late, options.requests);
    // Those who cannot be served hear so at once, not at the end of a wait in vain.
    EXPECT_GE(report.refused_at_once, 20 * report.refused_late) << report.ToString();
    EXPECT_LE(report.queue_p99, options.queue_time_max);
    EXPECT_LE(report.drained, absl::Seconds(10)) << "the load is over, the queue is not";
    EXPECT_TRUE(report.idle);
  }
}

TEST(CostModelTest, BelowTheCapacityNobodyIsRefused) {
  CostOptions options = Small();
  options.load = 0.7;
  const CostReport report = RunCostModel(options, Quietly);
  EXPECT_EQ(report.completed, options.requests) << report.ToString();
  EXPECT_TRUE(report.idle);
}

TEST(CostModelTest, AffinityFindsPrefixesThatRandomPlacementDoesNot) {
  CostOptions options = Small();
  options.load = 0.7;
  const CostReport with = RunCostModel(options, Quietly);
  options.affinity = false;
  const CostReport without = RunCostModel(options, Quietly);
  EXPECT_GE(with.hit_share, 1.2 * without.hit_share) << with.ToString() << "\n" << without.ToString();
  EXPECT_LE(with.latency_p99, 1.5 * without.latency_p99) << "it must not crowd few groups";
}

}  // namespace
}  // namespace quicksilver::simulation
