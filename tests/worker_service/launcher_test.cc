#include "worker/service/launcher.h"

#include <gtest/gtest.h>

namespace quicksilver {
namespace {

constexpr absl::Duration kQuick = absl::Seconds(1);
constexpr absl::Duration kLong = absl::Minutes(10);

TEST(RestartPolicyTest, TheFirstRestartIsImmediateAndRepeatedOnesBackOffToAMinute) {
  RestartPolicy policy;
  EXPECT_EQ(policy.NextDelay(kQuick), absl::ZeroDuration());
  for (const int seconds : {1, 2, 4, 8, 16, 32, 60, 60, 60}) {
    EXPECT_EQ(policy.NextDelay(kQuick), absl::Seconds(seconds));
  }
}

TEST(RestartPolicyTest, AGroupThatServedForAWhileIsRestartedAtOnce) {
  RestartPolicy policy;
  EXPECT_EQ(policy.NextDelay(kLong), absl::ZeroDuration());
  EXPECT_EQ(policy.NextDelay(kLong), absl::ZeroDuration());
  EXPECT_EQ(policy.NextDelay(kQuick), absl::Seconds(1));
  EXPECT_EQ(policy.NextDelay(kLong), absl::ZeroDuration());
}

}  // namespace
}  // namespace quicksilver
