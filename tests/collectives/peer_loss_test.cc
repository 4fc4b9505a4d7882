#include <gtest/gtest.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "tests/support/child_process.h"

namespace quicksilver {
namespace {

// Real processes: threads cannot be killed or stopped one by one.
class PeerLossTest : public ::testing::TestWithParam<const char*> {
 protected:
  void Start(int ranks, absl::Duration timeout) {
    static int groups = 0;
    const std::string address = absl::StrCat("unix-abstract:peer-loss-", getpid(), "-", groups++);
    for (int rank = 0; rank < ranks; ++rank) {
      ranks_.push_back(std::make_unique<ChildProcess>(
          std::vector<std::string>{COLLECTIVE_RANK, absl::StrCat(rank), absl::StrCat(ranks), address,
                                   absl::StrCat(absl::ToInt64Milliseconds(timeout)), GetParam()}));
    }
    for (auto& rank : ranks_) ASSERT_TRUE(rank->WaitForOutput("running", absl::Seconds(30))) << rank->output();
    absl::SleepFor(absl::Milliseconds(100));
  }

  void ExpectLoss(int rank, absl::Duration least, absl::Duration most) {
    const absl::Time start = absl::Now();
    EXPECT_TRUE(ranks_[rank]->WaitForOutput("UNAVAILABLE", absl::Seconds(20))) << ranks_[rank]->output();
    EXPECT_GE(absl::Now() - start, least) << "rank " << rank;
    EXPECT_LT(absl::Now() - start, most) << "rank " << rank;
  }

  std::vector<std::unique_ptr<ChildProcess>> ranks_;
};

TEST_P(PeerLossTest, AKilledFollowerIsNoticedAtOnce) {
  Start(2, absl::Seconds(10));
  ranks_[1]->Kill(SIGKILL);
  ExpectLoss(0, absl::ZeroDuration(), absl::Seconds(1));
}

TEST_P(PeerLossTest, AKilledLeaderIsNoticedAtOnceByEveryFollower) {
  Start(4, absl::Seconds(10));
  ranks_[0]->Kill(SIGKILL);
  for (int rank = 1; rank < 4; ++rank) ExpectLoss(rank, absl::ZeroDuration(), absl::Seconds(1));
}

TEST_P(PeerLossTest, AStoppedFollowerIsNoticedWithinTheTimeout) {
  Start(2, absl::Seconds(2));
  ranks_[1]->Kill(SIGSTOP);
  ExpectLoss(0, absl::Milliseconds(500), absl::Seconds(3));
}

TEST_P(PeerLossTest, AStoppedLeaderIsNoticedWithinTheTimeoutByEveryFollower) {
  Start(3, absl::Seconds(2));
  ranks_[0]->Kill(SIGSTOP);
  ExpectLoss(1, absl::Milliseconds(500), absl::Seconds(3));
  ExpectLoss(2, absl::ZeroDuration(), absl::Seconds(1));
}

INSTANTIATE_TEST_SUITE_P(Channels, PeerLossTest, ::testing::Values("data", "control"),
                         [](const auto& kind) { return std::string(kind.param); });

}  // namespace
}  // namespace quicksilver
