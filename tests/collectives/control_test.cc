#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/time/clock.h"
#include "tests/collectives/group_of_threads.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(5);

void WithChannels(int ranks, absl::Duration timeout,
                  const std::function<void(int rank, ControlChannel& channel)>& body) {
  MemoryRendezvous store;
  RunRanks(ranks, [&](int rank) {
    auto channel = MakeGlooControlChannel(GlooOptionsFor(rank, ranks, timeout), store, absl::Seconds(20));
    ASSERT_TRUE(channel.ok()) << channel.status();
    body(rank, **channel);
  });
}

TEST(LocalControlTest, ReturnsWhatItIsGiven) {
  const auto channel = MakeLocalControlChannel();
  EXPECT_EQ(*channel->Broadcast("entry", kTimeout), "entry");
  EXPECT_TRUE(channel->Barrier(kTimeout).ok());
}

TEST(GlooControlTest, EveryRankGetsTheLeadersMessagesInOrder) {
  const std::string large(3'000'001, 'x');
  for (const int ranks : {2, 4}) {
    WithChannels(ranks, kTimeout, [&](int rank, ControlChannel& channel) {
      for (int i = 0; i < 50; ++i) {
        const std::string message = i == 20 ? large : i == 21 ? "" : "entry " + std::to_string(i);
        const auto received = channel.Broadcast(rank == 0 ? message : "ignored", kTimeout);
        ASSERT_TRUE(received.ok()) << received.status();
        ASSERT_EQ(*received, message);
      }
      ASSERT_TRUE(channel.Barrier(kTimeout).ok());
      ASSERT_EQ(*channel.Broadcast(rank == 0 ? "after" : "", kTimeout), "after");
      ASSERT_TRUE(channel.Barrier(kTimeout).ok());
    });
  }
}

TEST(GlooControlTest, ABarrierHoldsUntilTheLastRankComes) {
  std::atomic<int> arrived = 0;
  WithChannels(3, kTimeout, [&](int rank, ControlChannel& channel) {
    absl::SleepFor(absl::Milliseconds(60 * rank));
    ++arrived;
    ASSERT_TRUE(channel.Barrier(kTimeout).ok());
    EXPECT_EQ(arrived.load(), 3);
    ASSERT_TRUE(channel.Barrier(kTimeout).ok());
  });
}

TEST(GlooControlTest, AFollowerGivesASilentLeaderUpAfterTheTimeout) {
  std::atomic<bool> done = false;
  WithChannels(2, kTimeout, [&](int rank, ControlChannel& channel) {
    if (rank == 0) {
      while (!done) absl::SleepFor(absl::Milliseconds(5));
      return;
    }
    const absl::Time start = absl::Now();
    EXPECT_TRUE(absl::IsUnavailable(channel.Broadcast("", absl::Milliseconds(200)).status()));
    EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    done = true;
  });
}

// An idle leader only ever sends: the answers to its beats are how it notices.
TEST(GlooControlTest, ALeaderThatBeatsNoticesASilentFollowerWithinTheTimeout) {
  std::atomic<bool> done = false;
  WithChannels(2, absl::Seconds(2), [&](int rank, ControlChannel& channel) {
    if (rank == 1) {
      ASSERT_TRUE(channel.Broadcast("", absl::Seconds(2)).ok());
      while (!done) absl::SleepFor(absl::Milliseconds(5));
      return;
    }
    const absl::Time start = absl::Now();
    absl::Status status;
    while (status.ok() && absl::Now() - start < absl::Seconds(10)) {
      status = channel.Broadcast("beat", absl::Seconds(2)).status();
      absl::SleepFor(absl::Milliseconds(100));
    }
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    done = true;
  });
}

TEST(GlooControlTest, AMessageBeyondTheBoundIsRefused) {
  WithChannels(2, kTimeout, [&](int rank, ControlChannel& channel) {
    if (rank == 0) {
      const auto sent = channel.Broadcast(std::string(kControlMessageBytesMax + 1, 'x'), kTimeout);
      EXPECT_TRUE(absl::IsInternal(sent.status())) << sent.status();
    }
  });
}

}  // namespace
}  // namespace quicksilver
