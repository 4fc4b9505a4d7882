#include "tools/bench_serve/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace quicksilver {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;

struct Gaps {
  double mean = 0.0;
  double variation = 0.0;  // Standard deviation over mean: 1 / sqrt(burstiness) for a gamma distribution.
};

Gaps GapsOf(const std::vector<double>& arrivals) {
  double sum = 0.0, squares = 0.0, last = 0.0;
  for (const double arrival : arrivals) {
    sum += arrival - last;
    squares += (arrival - last) * (arrival - last);
    last = arrival;
  }
  const auto count = static_cast<double>(arrivals.size());
  const double mean = sum / count;
  return {mean, std::sqrt(squares / count - mean * mean) / mean};
}

TEST(ArrivalSecondsTest, GapsHaveTheRateAndTheSpreadOfAPoissonProcess) {
  const Gaps gaps = GapsOf(ArrivalSeconds(200'000, 50.0, 1.0, 1));
  EXPECT_THAT(gaps.mean, DoubleNear(0.02, 0.0002));
  EXPECT_THAT(gaps.variation, DoubleNear(1.0, 0.02));
}

TEST(ArrivalSecondsTest, BurstinessChangesTheSpreadAndKeepsTheRate) {
  for (const double burstiness : {0.25, 4.0}) {
    const Gaps gaps = GapsOf(ArrivalSeconds(200'000, 50.0, burstiness, 1));
    EXPECT_THAT(gaps.mean, DoubleNear(0.02, 0.0005)) << burstiness;
    EXPECT_THAT(gaps.variation, DoubleNear(1.0 / std::sqrt(burstiness), 0.05)) << burstiness;
  }
}

TEST(ArrivalSecondsTest, AnInfiniteRateSendsAllAtOnce) {
  EXPECT_THAT(ArrivalSeconds(5, std::numeric_limits<double>::infinity(), 1.0, 1), Each(0.0));
}

TEST(ArrivalSecondsTest, EqualSeedsGiveEqualArrivalsAndOthersDoNot) {
  EXPECT_EQ(ArrivalSeconds(10, 5.0, 1.0, 7), ArrivalSeconds(10, 5.0, 1.0, 7));
  EXPECT_NE(ArrivalSeconds(10, 5.0, 1.0, 7), ArrivalSeconds(10, 5.0, 1.0, 8));
}

}  // namespace
}  // namespace quicksilver
