#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/collectives/communicator_suite.h"
#include "worker/collectives/timed_communicator.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(5);

absl::StatusOr<RankMember> OnHost(absl::StatusOr<std::unique_ptr<Communicator>> group) {
  if (!group.ok()) return group.status();
  return RankMember{std::make_unique<HostRankMemory>(), *std::move(group)};
}

absl::StatusOr<RankMember> MakeLocal(int, int, RendezvousStore&) { return OnHost(MakeLocalCommunicator()); }

absl::StatusOr<RankMember> MakeGloo(int rank, int ranks, RendezvousStore& store) {
  return OnHost(MakeGlooCommunicator(GlooOptionsFor(rank, ranks, kTimeout), store, absl::Seconds(20)));
}

absl::StatusOr<RankMember> MakeTimed(int rank, int ranks, RendezvousStore& store) {
  absl::StatusOr<RankMember> member = MakeGloo(rank, ranks, store);
  if (!member.ok()) return member;
  member->group = MakeTimedCommunicator(std::move(member->group), [](CollectiveOperation, absl::Duration) {});
  return member;
}

INSTANTIATE_TEST_SUITE_P(Timed, CommunicatorTest, ::testing::Values(CommunicatorKind{"two", 2, MakeTimed}),
                         [](const auto& kind) { return kind.param.name; });
INSTANTIATE_TEST_SUITE_P(Local, CommunicatorTest, ::testing::Values(CommunicatorKind{"local", 1, MakeLocal}),
                         [](const auto& kind) { return kind.param.name; });
INSTANTIATE_TEST_SUITE_P(Gloo, CommunicatorTest,
                         ::testing::Values(CommunicatorKind{"two", 2, MakeGloo}, CommunicatorKind{"three", 3, MakeGloo},
                                           CommunicatorKind{"four", 4, MakeGloo}),
                         [](const auto& kind) { return kind.param.name; });

TEST(TimedCommunicatorTest, TellsHowLongEachOperationTookTheWaitForOthersIncluded) {
  MemoryRendezvous store;
  RunRanks(2, [&](int rank) {
    auto member = MakeGloo(rank, 2, store);
    ASSERT_TRUE(member.ok()) << member.status();
    std::vector<std::pair<CollectiveOperation, absl::Duration>> seen;
    const auto group = MakeTimedCommunicator(
        std::move(member->group),
        [&](CollectiveOperation operation, absl::Duration duration) { seen.emplace_back(operation, duration); });
    if (rank == 1) absl::SleepFor(absl::Milliseconds(50));
    char all[2] = {};
    float x = 1;
    group->AllGather(&all[rank], all, 1);
    group->AllReduceSum({&x, 1, 1, 1, DType::kF32});
    ASSERT_TRUE(group->Synchronize().ok());
    ASSERT_EQ(seen.size(), 2u);
    EXPECT_EQ(seen[0].first, CollectiveOperation::kAllGather);
    EXPECT_EQ(seen[1].first, CollectiveOperation::kAllReduce);
    if (rank == 0) {
      EXPECT_GE(seen[0].second, absl::Milliseconds(40));
    }
    EXPECT_LT(seen[1].second, absl::Seconds(5));
  });
}

// The faults below need a peer: gloo only.
class GlooFaultTest : public ::testing::Test {
 protected:
  /// Forms a group of two and runs `body` on rank 0 while rank 1 does nothing until `body` is done.
  void AgainstAnIdlePeer(absl::Duration timeout, const std::function<void(Communicator& group)>& body) {
    MemoryRendezvous store;
    std::atomic<bool> done = false;
    RunRanks(2, [&](int rank) {
      auto group = MakeGlooCommunicator(GlooOptionsFor(rank, 2, timeout), store, absl::Seconds(20));
      ASSERT_TRUE(group.ok()) << group.status();
      if (rank == 0) body(**group);
      if (rank == 0) done = true;
      while (!done) absl::SleepFor(absl::Milliseconds(5));
    });
  }
  static absl::Status Reduce(Communicator& group) {
    float x = 1;
    group.AllReduceSum({&x, 1, 1, 1, DType::kF32});
    return group.Synchronize();
  }
};

TEST_F(GlooFaultTest, AbortFromAnotherThreadEndsAWaitAtOnce) {
  AgainstAnIdlePeer(absl::Seconds(30), [&](Communicator& group) {
    std::thread other([&group] {
      absl::SleepFor(absl::Milliseconds(100));
      group.Abort();
    });
    const absl::Time start = absl::Now();
    EXPECT_TRUE(absl::IsUnavailable(Reduce(group)));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    other.join();
  });
}

TEST_F(GlooFaultTest, ASilentPeerIsLostAfterTheTimeoutAndStaysLost) {
  AgainstAnIdlePeer(absl::Milliseconds(300), [&](Communicator& group) {
    const absl::Time start = absl::Now();
    const absl::Status status = Reduce(group);
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1: silent for 300ms"));
    EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    EXPECT_EQ(Reduce(group), status);
  });
}

TEST_F(GlooFaultTest, RanksThatDisagreeAboutASizeBothFail) {
  MemoryRendezvous store;
  RunRanks(2, [&](int rank) {
    auto group = MakeGlooCommunicator(GlooOptionsFor(rank, 2, absl::Seconds(2)), store, absl::Seconds(20));
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<float> x(8, 1.0f);
    const int64_t cols = rank == 0 ? 8 : 4;
    (*group)->AllReduceSum({x.data(), 1, cols, cols, DType::kF32});
    EXPECT_FALSE((*group)->Synchronize().ok());
  });
}

TEST_F(GlooFaultTest, AMissingRankEndsTheFormation) {
  MemoryRendezvous store;
  const auto group = MakeGlooCommunicator(GlooOptionsFor(0, 2, absl::Seconds(1)), store, absl::Milliseconds(200));
  EXPECT_TRUE(absl::IsUnavailable(group.status())) << group.status();
}

}  // namespace
}  // namespace quicksilver
