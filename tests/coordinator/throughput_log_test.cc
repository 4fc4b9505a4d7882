#include "coordinator/service/throughput_log.h"

#include <gtest/gtest.h>

namespace quicksilver {
namespace {

constexpr absl::Duration kInterval = ThroughputLog::kInterval;

TEST(ThroughputLogTest, SaysHowFastTheLastIntervalWasOnce) {
  ThroughputLog log;
  log.Next(kInterval);
  log.AddPrompt(100);
  log.AddOutput(30, 10);
  log.AddEnd(40, 10);
  EXPECT_FALSE(log.Next(1.5 * kInterval).has_value());
  const std::optional<ThroughputLog::Rates> rates = log.Next(3 * kInterval);
  ASSERT_TRUE(rates.has_value());
  const double seconds = absl::ToDoubleSeconds(2 * kInterval);
  EXPECT_DOUBLE_EQ(rates->prompt_tokens_per_second, 100 / seconds);
  EXPECT_DOUBLE_EQ(rates->output_tokens_per_second, 30 / seconds);
  EXPECT_DOUBLE_EQ(rates->tokens_per_forward, 3);
  EXPECT_DOUBLE_EQ(rates->prefix_hit_ratio, 0.25);
}

TEST(ThroughputLogTest, IsSilentWhileNothingHappens) {
  ThroughputLog log;
  log.AddPrompt(1);
  EXPECT_TRUE(log.Next(kInterval).has_value());
  EXPECT_FALSE(log.Next(2 * kInterval).has_value());
}

}  // namespace
}  // namespace quicksilver
