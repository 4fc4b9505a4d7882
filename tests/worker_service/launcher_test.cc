#include "worker/service/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/service/machine.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

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

TEST(DeviceHealthTest, ADeviceThatFailedThreeTimesIsUnhealthyAndNoOther) {
  DeviceHealth health;
  EXPECT_FALSE(health.OnFailure(4));
  EXPECT_FALSE(health.OnFailure(4));
  EXPECT_FALSE(health.OnFailure(5));
  EXPECT_THAT(health.Unhealthy(), IsEmpty());
  EXPECT_TRUE(health.OnFailure(4));
  EXPECT_FALSE(health.OnFailure(4)) << "it is said once";
  EXPECT_THAT(health.Unhealthy(), ElementsAre(4));
}

TEST(DeviceOfRankTest, SparesStepInForUnhealthyDevices) {
  WorkerOptions options;
  options.tensor_parallel_size = 2;
  EXPECT_EQ(DeviceOfRank(options, 1), 1);
  options.devices = {4, 5, 6};
  EXPECT_EQ(DeviceOfRank(options, 0), 4);
  EXPECT_EQ(DeviceOfRank(options, 1), 5);
  options.unhealthy_devices = {4};
  EXPECT_EQ(DeviceOfRank(options, 0), 5);
  EXPECT_EQ(DeviceOfRank(options, 1), 6);
}

}  // namespace
}  // namespace quicksilver
