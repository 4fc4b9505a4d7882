#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/dispatcher_support.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr GroupBeat kDraining{.epoch = 7, .ready = true, .draining = true};

Actions BusyBeat(Dispatcher& dispatcher, Connection connection, absl::Duration now) {
  return dispatcher.OnHeartbeat(connection, {.epoch = 7, .ready = true, .sequences_waiting = 3}, now);
}

TEST(DispatcherMovesTest, AGroupThatDrainsGivesAwayWhatFitsElsewhereAndFinishesTheRest) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 3);
  SequenceId sequences[3];
  for (uint64_t i = 0; i < 3; ++i) {
    sequences[i] = OnlySequence(dispatcher.Submit(Ask(RequestId{i + 1}), kStart));
    dispatcher.OnProgress(sequences[i], 1, kStart);
  }
  Join(dispatcher, kB, 2);
  Join(dispatcher, kC, 8, "another fingerprint");

  const Actions actions = dispatcher.OnHeartbeat(kA, kDraining, kStart);

  ASSERT_THAT(actions, SizeIs(4));
  const auto& submit = std::get<SubmitSequence>(actions[0]);
  EXPECT_EQ(submit.to, kB);
  EXPECT_EQ(submit.request, kFirst);
  EXPECT_TRUE(submit.resume);
  EXPECT_EQ(submit.cause, SubmitCause::kMoved);
  const auto& cancel = std::get<CancelSequence>(actions[1]);
  EXPECT_EQ(cancel.to, kA);
  EXPECT_EQ(cancel.sequence, sequences[0]);
  EXPECT_FALSE(dispatcher.Owner(kA, sequences[0]).has_value());
  EXPECT_TRUE(dispatcher.Owner(kA, sequences[2]).has_value()) << "B is full: it goes on where it is";

  EXPECT_EQ(OnlySubmit(dispatcher.Submit(Ask(kFifth), kStart)).to, kC) << "a group that drains gets nothing new";
  dispatcher.OnSequenceEnded(submit.sequence, 5, kStart);
  EXPECT_THAT(Placed(dispatcher.OnHeartbeat(kA, kDraining, kStart)), ElementsAre(kThird));
  dispatcher.CheckInvariants();
}

TEST(DispatcherMovesTest, WaitingRequestsComeBeforeThoseOfAGroupThatDrains) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  const SequenceId first = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  dispatcher.Submit(Ask(kSecond), kStart);
  EXPECT_THAT(dispatcher.OnHeartbeat(kA, kDraining, kStart), IsEmpty());
  EXPECT_THAT(Placed(Join(dispatcher, kB, 1)), ElementsAre(kSecond));
  EXPECT_THAT(dispatcher.OnHeartbeat(kA, kDraining, kStart), IsEmpty());
  EXPECT_THAT(Of<CompleteRequest>(dispatcher.OnSequenceEnded(first, 1, kStart)), SizeIs(1));
}

TEST(DispatcherMovesTest, AGroupWithWorkWaitingGivesItsYoungestToAFreeOne) {
  Dispatcher dispatcher({.moves_per_second_max = 1});
  Join(dispatcher, kA, 8);
  for (uint64_t i = 1; i <= 6; ++i) dispatcher.Submit(Ask(RequestId{i}), kStart);
  Join(dispatcher, kB, 8);
  EXPECT_THAT(BusyBeat(dispatcher, kA, kStart), IsEmpty()) << "it may be over in a moment";

  const Actions actions = BusyBeat(dispatcher, kA, kStart + absl::Seconds(1));

  ASSERT_THAT(actions, SizeIs(2));
  EXPECT_EQ(std::get<SubmitSequence>(actions[0]).request, RequestId{6});
  EXPECT_EQ(std::get<SubmitSequence>(actions[0]).to, kB);
  EXPECT_EQ(std::get<SubmitSequence>(actions[0]).cause, SubmitCause::kMoved);
  EXPECT_EQ(std::get<CancelSequence>(actions[1]).to, kA);
  EXPECT_THAT(BusyBeat(dispatcher, kA, kStart + absl::Seconds(1)), IsEmpty()) << "one a second";
  EXPECT_THAT(Placed(BusyBeat(dispatcher, kA, kStart + absl::Seconds(2))), ElementsAre(RequestId{5}));
}

TEST(DispatcherMovesTest, LoadIsEvenedOutWithoutPingPong) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 16);
  for (uint64_t i = 1; i <= 16; ++i) dispatcher.Submit(Ask(RequestId{i}), kStart);
  Join(dispatcher, kB, 16);
  size_t moves = 0;
  for (int second = 1; second <= 60; ++second) {
    const absl::Duration now = kStart + absl::Seconds(second);
    for (const Connection& each : {kA, kB}) moves += Of<SubmitSequence>(Beat(dispatcher, each, now)).size();
  }
  const uint32_t there = dispatcher.groups().at(kB.group).sequences;
  EXPECT_GE(there, 3u);
  EXPECT_LE(there, 8u);
  EXPECT_EQ(moves, there) << "nothing was moved back";
  EXPECT_THAT(Of<SubmitSequence>(Beat(dispatcher, kA, kStart + absl::Seconds(61))), IsEmpty());
}

TEST(DispatcherMovesTest, ASequenceMovesTwiceForBalanceAtMost) {
  Dispatcher dispatcher({.lease = absl::Hours(1)});
  Join(dispatcher, kA, 4);
  Join(dispatcher, kB, 4);
  Connection at = OnlySubmit(dispatcher.Submit(Ask(kFirst), kStart)).to;
  int moves = 0;
  for (int second = 1; second <= 20; ++second) {
    // Wherever it is, that group says that it has work waiting, and the other one that it has none.
    const absl::Duration now = kStart + absl::Seconds(second);
    Beat(dispatcher, at == kA ? kB : kA, now);
    for (const SubmitSequence& submit : Of<SubmitSequence>(dispatcher.OnHeartbeat(
             at, {.epoch = 7, .ready = true, .sequences_running = 4, .sequences_waiting = 4}, now))) {
      at = submit.to;
      ++moves;
    }
  }
  EXPECT_EQ(moves, 2);
}

TEST(DispatcherMovesTest, NothingMovesToAnotherFingerprintOrToAFullGroup) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 8);
  for (uint64_t i = 1; i <= 6; ++i) dispatcher.Submit(Ask(RequestId{i}), kStart);
  Join(dispatcher, kB, 8, "another fingerprint");
  for (int second = 0; second < 5; ++second) {
    EXPECT_THAT(BusyBeat(dispatcher, kA, kStart + absl::Seconds(second)), IsEmpty());
  }
}

TEST(DispatcherMovesTest, NothingMovesToAGroupWithWorkWaitingItself) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 8);
  for (uint64_t i = 1; i <= 6; ++i) dispatcher.Submit(Ask(RequestId{i}), kStart);
  Join(dispatcher, kB, 8);
  for (int second = 0; second < 5; ++second) {
    EXPECT_THAT(BusyBeat(dispatcher, kB, kStart + absl::Seconds(second)), IsEmpty());
    EXPECT_THAT(BusyBeat(dispatcher, kA, kStart + absl::Seconds(second)), IsEmpty());
  }
}

// Group A, whose circuit breaker has just opened.
Connection JoinAfterFiveFailures(Dispatcher& dispatcher) {
  Connection a = kA;
  Join(dispatcher, a, 4);
  for (int i = 0; i < 5; ++i) {
    dispatcher.OnGroupLost(a, kStart);
    a = Again(a);
    Join(dispatcher, a, 4);
  }
  return a;
}

// Five failures in ten minutes: the group gets no work for a minute, then one sequence at a time until one got on.
TEST(DispatcherMovesTest, AGroupThatFailsAgainAndAgainIsTriedCautiously) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(500), .lease = absl::Hours(1)});
  Join(dispatcher, kB, 1);
  Connection a = JoinAfterFiveFailures(dispatcher);
  EXPECT_EQ(OnlySubmit(dispatcher.Submit(Ask(kFirst), kStart)).to, kB);
  EXPECT_THAT(dispatcher.Submit(Ask(kSecond), kStart), IsEmpty()) << "it waits rather than go to the broken one";
  dispatcher.Submit(Ask(kThird), kStart);
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(59)), IsEmpty());

  const SubmitSequence probe = OnlySubmit(dispatcher.Tick(kStart + absl::Seconds(60)));
  EXPECT_EQ(probe.to, a);
  EXPECT_THAT(Placed(dispatcher.OnProgress(probe.sequence, 1, kStart + absl::Seconds(61))), ElementsAre(kThird));
}

TEST(DispatcherMovesTest, ALostProbeKeepsTheGroupOutForTwiceAsLong) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(500), .lease = absl::Hours(1)});
  Join(dispatcher, kB, 1);
  Connection a = JoinAfterFiveFailures(dispatcher);
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.Submit(Ask(kSecond), kStart);
  const absl::Duration probed = kStart + absl::Seconds(60);
  EXPECT_EQ(OnlySubmit(dispatcher.Tick(probed)).to, a);
  dispatcher.OnGroupLost(a, probed);
  a = Again(a);
  Join(dispatcher, a, 4, "same", probed);
  EXPECT_THAT(Of<SubmitSequence>(dispatcher.Tick(probed + absl::Seconds(119))), IsEmpty());
  EXPECT_EQ(OnlySubmit(dispatcher.Tick(probed + absl::Seconds(120))).to, a);
}

// What began on a fingerprint can go on nowhere else.
TEST(DispatcherMovesTest, TheLastGroupOfAFingerprintIsUsedByThoseWhoAreBoundToIt) {
  Dispatcher dispatcher({.lease = absl::Hours(1)});
  Connection a = kA;
  for (uint64_t i = 1; i <= 5; ++i) {
    Join(dispatcher, a, 4);
    dispatcher.OnProgress(OnlySequence(dispatcher.Submit(Ask(RequestId{i}), kStart)), 1, kStart);
    if (i == 5) Join(dispatcher, kB, 4, "another fingerprint");
    for (uint64_t done = 1; done < i; ++done) dispatcher.Cancel(RequestId{done}, kStart);
    dispatcher.OnGroupLost(a, kStart);
    a = Again(a);
  }
  EXPECT_THAT(Placed(Join(dispatcher, a, 4)), ElementsAre(kFifth));
  for (uint64_t i = 6; i < 9; ++i) EXPECT_EQ(OnlySubmit(dispatcher.Submit(Ask(RequestId{i}), kStart)).to, kB);
  dispatcher.CheckInvariants();
}

TEST(DispatcherMovesTest, TheLastGroupIsUsedHoweverOftenItFailed) {
  Dispatcher dispatcher({});
  Connection a = kA;
  Join(dispatcher, a, 4);
  for (int i = 0; i < 6; ++i) {
    dispatcher.OnGroupLost(a, kStart);
    a = Again(a);
    Join(dispatcher, a, 4);
  }
  EXPECT_EQ(OnlySubmit(dispatcher.Submit(Ask(kFirst), kStart)).to, a);
  EXPECT_EQ(OnlySubmit(dispatcher.Submit(Ask(kSecond), kStart)).to, a);
  Join(dispatcher, kB, 4);
  EXPECT_EQ(OnlySubmit(dispatcher.Submit(Ask(kThird), kStart)).to, kB) << "a sound one is there again";
  dispatcher.CheckInvariants();
}

}  // namespace
}  // namespace quicksilver
