#include "common/failpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kSkip = FailpointIndex("group.skip_step");
constexpr size_t kStep = FailpointIndex("worker.before_step");

class FailpointTest : public testing::Test {
 protected:
  ~FailpointTest() override { Init("seed=0"); }  // No rule is left behind.
  static void Init(absl::string_view rules, uint64_t restarts = 0) {
    const absl::Status status = InitFailpoints(true, rules, restarts);
    ASSERT_TRUE(status.ok()) << status;
  }
  static std::vector<bool> Hits(int count, uint64_t key = 0) {
    std::vector<bool> fails;
    for (int i = 0; i < count; ++i) fails.push_back(HitFailpoint(kSkip, key));
    return fails;
  }
};

TEST_F(FailpointTest, NothingFailsWithoutRules) { EXPECT_THAT(Hits(2), ElementsAre(false, false)); }

TEST_F(FailpointTest, FailsSoManyTimesAfterSoManyHits) {
  Init(" group.skip_step = fail(2) + 1 ; ");
  EXPECT_THAT(Hits(5), ElementsAre(false, true, true, false, false));
}

TEST_F(FailpointTest, AKeyLeavesOtherKeysAloneAndUncounted) {
  Init("group.skip_step[18446744073709551615]=fail+1");
  EXPECT_THAT(Hits(3, 7), ElementsAre(false, false, false));
  EXPECT_THAT(Hits(3, 18446744073709551615u), ElementsAre(false, true, true));
}

TEST_F(FailpointTest, APointLeavesOthersAlone) {
  Init("engine.nan_row=fail");
  EXPECT_THAT(Hits(2), ElementsAre(false, false));
}

TEST_F(FailpointTest, AProbabilityIsMetAndRepeatsExactlyUnderItsSeed) {
  Init("group.skip_step=fail@0.25;seed=7");
  const std::vector<bool> first = Hits(4000);
  const auto failed = std::count(first.begin(), first.end(), true);
  EXPECT_GT(failed, 850);
  EXPECT_LT(failed, 1150);
  Init("group.skip_step=fail@0.25;seed=7");
  EXPECT_EQ(Hits(4000), first);
  Init("group.skip_step=fail@0.25;seed=8");
  EXPECT_NE(Hits(4000), first);
}

TEST_F(FailpointTest, ARuleEndsAfterItsRestarts) {
  Init("group.skip_step=fail^1", /*restarts=*/1);
  EXPECT_THAT(Hits(1), ElementsAre(true));
  Init("group.skip_step=fail^1", /*restarts=*/2);
  EXPECT_THAT(Hits(1), ElementsAre(false));
}

TEST_F(FailpointTest, ADelayDelaysAndDoesNotFail) {
  Init("worker.before_step=delay(30ms)");
  const absl::Time start = absl::Now();
  EXPECT_FALSE(HitFailpoint(kStep, 0));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(30));
}

TEST_F(FailpointTest, KillEndsTheProcessBySignalAndExitWithItsCode) {
  Init("worker.before_step=kill");
  EXPECT_EXIT(HitFailpoint(kStep, 0), testing::KilledBySignal(SIGKILL), "");
  Init("worker.before_step=exit(4)");
  EXPECT_EXIT(HitFailpoint(kStep, 0), testing::ExitedWithCode(4), "");
}

TEST_F(FailpointTest, WhatIsWrongIsNamed) {
  for (const auto& [rules, part] : std::vector<std::pair<std::string, std::string>>{
           {"group.skip_steps=fail", "no point 'group.skip_steps'; there are"},
           {"group.skip_step", "the action ''"},
           {"group.skip_step=explode", "the action 'explode'"},
           {"group.skip_step=fail(-1)", "'-1'"},
           {"group.skip_step=fail@1.5", "'1.5'"},
           {"group.skip_step=fail@nan", "'nan'"},
           {"group.skip_step=fail+x", "'x'"},
           {"group.skip_step=fail^x", "'x'"},
           {"group.skip_step[x]=fail", "'x'"},
           {"group.skip_step]=fail", "the key ''"},
           {"worker.init=exit(256)", "'256'"},
           {"worker.init=delay(2h)", "'2h'"},
           {"worker.init=fail", "worker.init does not take fail"},
           {std::string(5000, ' ') + "group.skip_step=fail", "at most 4096"}}) {
    const absl::Status status = InitFailpoints(true, rules, 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << rules;
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

TEST_F(FailpointTest, AProgramWithoutFailpointsRefusesRules) {
  EXPECT_EQ(InitFailpoints(false, "group.skip_step=fail", 0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(InitFailpoints(false, " ", 0).ok());
  EXPECT_FALSE(QS_FAILPOINT("group.skip_step", 0));  // These sources are compiled without them.
}

}  // namespace
}  // namespace quicksilver
