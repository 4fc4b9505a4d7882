#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/dispatcher_support.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// Loses the group, lets it come back, and answers what then is submitted to it.
SubmitSequence LoseAndReturn(Dispatcher& dispatcher, Connection& connection) {
  EXPECT_THAT(Of<SubmitSequence>(dispatcher.OnGroupLost(connection, kStart)), IsEmpty());
  connection = Again(connection);
  return OnlySubmit(Join(dispatcher, connection, 4));
}

TEST(DispatcherFailoverTest, WhatRanOnALostGroupGoesOnElsewhereUnderNewIds) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4);
  const SubmitSequence before = OnlySubmit(dispatcher.Submit(Ask(kFirst), kStart));
  EXPECT_FALSE(before.resume);
  EXPECT_EQ(before.cause, SubmitCause::kNew);
  dispatcher.OnProgress(before.sequence, 10, kStart);
  Join(dispatcher, kB, 4);

  const Actions actions = dispatcher.OnGroupLost(kA, kStart);

  ASSERT_THAT(actions, SizeIs(1));
  const SubmitSequence after = OnlySubmit(actions);
  EXPECT_EQ(after.to, kB);
  EXPECT_EQ(after.request, kFirst);
  EXPECT_NE(after.sequence, before.sequence);
  EXPECT_EQ(after.cause, SubmitCause::kLost);
  EXPECT_TRUE(after.resume);
  EXPECT_FALSE(dispatcher.Owner(kA, before.sequence).has_value());
  EXPECT_THAT(dispatcher.OnSequenceEnded(before.sequence, 20, kStart), IsEmpty()) << "the old id is nobody's";
  EXPECT_THAT(Of<CompleteRequest>(dispatcher.OnSequenceEnded(after.sequence, 20, kStart)), SizeIs(1));
}

TEST(DispatcherFailoverTest, ARequestWithoutProgressBeginsAnew) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4);
  dispatcher.Submit(Ask(kFirst), kStart);
  Join(dispatcher, kB, 4);
  const SubmitSequence after = OnlySubmit(dispatcher.OnGroupLost(kA, kStart));
  EXPECT_EQ(after.cause, SubmitCause::kLost);
  EXPECT_FALSE(after.resume);
}

TEST(DispatcherFailoverTest, ProgressThatIsNotedBehindTheLossBindsToTheFingerprint) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4, "old");
  const SubmitSequence before = OnlySubmit(dispatcher.Submit(Ask(kFirst), kStart));
  dispatcher.OnGroupLost(kA, kStart);
  EXPECT_FALSE(dispatcher.IsAlive(before.sequence));
  EXPECT_THAT(dispatcher.OnLateUpdate({kFirst, 0}, /*ended=*/false, 10, kStart), IsEmpty());
  EXPECT_THAT(Join(dispatcher, kB, 4, "new"), IsEmpty());
  const SubmitSequence after = OnlySubmit(Join(dispatcher, Again(kA), 4, "old"));
  EXPECT_EQ(after.to, Again(kA));
  EXPECT_TRUE(after.resume);
  dispatcher.CheckInvariants();
}

TEST(DispatcherFailoverTest, AnEndThatIsNotedBehindTheLossEndsTheChoice) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4);
  dispatcher.Submit(Ask(kFirst, /*choices=*/2), kStart);
  dispatcher.OnGroupLost(kA, kStart);
  EXPECT_THAT(dispatcher.OnLateUpdate({kFirst, 0}, /*ended=*/true, 10, kStart), IsEmpty());
  EXPECT_THAT(dispatcher.OnLateUpdate({kFirst, 0}, /*ended=*/true, 10, kStart), IsEmpty()) << "it had ended";
  dispatcher.CheckInvariants();
  EXPECT_EQ(OnlySubmit(Join(dispatcher, kB, 4)).choice, 1u);
  EXPECT_THAT(Of<CompleteRequest>(dispatcher.OnLateUpdate({kFirst, 1}, /*ended=*/true, 10, kStart)), SizeIs(1));
  EXPECT_EQ(dispatcher.requests(), 0u);
  EXPECT_EQ(dispatcher.sequences(), 0u);
}

TEST(DispatcherFailoverTest, TheCallersOwnSilenceIsNotTheGroups) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4);
  dispatcher.Submit(Ask(kFirst), kStart);
  const absl::Duration late = kStart + absl::Seconds(20);
  dispatcher.ForgiveSilence(late);
  EXPECT_THAT(dispatcher.Tick(late), IsEmpty());
  EXPECT_THAT(Of<DropGroup>(dispatcher.Tick(late + DispatcherOptions().lease)), SizeIs(1)) << "this silence is its own";
}

// Losing a group must not cost its requests their place in the queue.
TEST(DispatcherFailoverTest, RequestsOfALostGroupRunBeforeThoseThatHaveNotBegun) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 2);
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.Submit(AskAs(kSecond, Priority::kBatch), kStart);
  dispatcher.Submit(AskAs(kThird, Priority::kInteractive), kStart);
  EXPECT_THAT(dispatcher.OnGroupLost(kA, kStart), IsEmpty());
  EXPECT_THAT(Placed(Join(dispatcher, Again(kA), 3)), ElementsAre(kFirst, kSecond, kThird));
}

TEST(DispatcherFailoverTest, WithProgressOnlyAnEqualFingerprintWillDo) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4, "x");
  dispatcher.OnProgress(OnlySequence(dispatcher.Submit(Ask(kFirst), kStart)), 1, kStart);
  dispatcher.Submit(Ask(kSecond), kStart);
  Join(dispatcher, kB, 4, "y");
  EXPECT_THAT(Placed(dispatcher.OnGroupLost(kA, kStart)), ElementsAre(kSecond)) << "nothing of it was seen yet";
  EXPECT_THAT(Placed(Join(dispatcher, kC, 4, "x")), ElementsAre(kFirst));
}

TEST(DispatcherFailoverTest, ARequestIsNotSplitOverTwoFingerprints) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1, "one");
  const auto placed = Of<SubmitSequence>(dispatcher.Submit(Ask(kFirst, /*choices=*/2), kStart));
  ASSERT_THAT(placed, SizeIs(1));
  EXPECT_THAT(Join(dispatcher, kB, 4, "other"), IsEmpty());
  // It waits for its own group, and holds up nobody who can run elsewhere.
  EXPECT_THAT(Placed(dispatcher.Submit(Ask(kSecond), kStart)), ElementsAre(kSecond));
  EXPECT_EQ(OnlySubmit(dispatcher.OnSequenceEnded(placed[0].sequence, 0, kStart)).to, kA);
}

TEST(DispatcherFailoverTest, ChoicesAreResumedOneByOne) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  Join(dispatcher, kB, 2);
  const auto placed = Of<SubmitSequence>(dispatcher.Submit(Ask(kFirst, /*choices=*/3), kStart));
  ASSERT_THAT(placed, SizeIs(3));
  for (const SubmitSequence& each : placed) dispatcher.OnProgress(each.sequence, 1, kStart);

  EXPECT_THAT(dispatcher.OnGroupLost(kA, kStart), IsEmpty()) << "B is full; its two choices go on";

  const Actions actions = Join(dispatcher, Again(kA), 1);
  const SubmitSequence resumed = OnlySubmit(actions);
  const auto lost = std::find_if(placed.begin(), placed.end(), [](const auto& each) { return each.to == kA; });
  EXPECT_EQ(resumed.choice, lost->choice);
  EXPECT_TRUE(resumed.resume);
  dispatcher.CheckInvariants();
}

TEST(DispatcherFailoverTest, AfterResumeWaitWithoutAGroupARequestIsLost) {
  Dispatcher dispatcher({.resume_wait = absl::Seconds(30)});
  Join(dispatcher, kA, 1);
  dispatcher.OnProgress(OnlySequence(dispatcher.Submit(Ask(kFirst), kStart)), 1, kStart);
  dispatcher.Submit(Ask(kSecond), kStart);
  const absl::Duration lost = kStart + absl::Seconds(2);
  EXPECT_THAT(dispatcher.OnGroupLost(kA, lost), IsEmpty());
  EXPECT_THAT(Codes(dispatcher.Submit(Ask(kThird), lost)), ElementsAre("no_ready_worker")) << "new ones hear at once";

  EXPECT_THAT(dispatcher.Tick(lost + absl::Seconds(29.9)), IsEmpty());
  const absl::Duration end = lost + absl::Seconds(30);
  EXPECT_LE(dispatcher.NextTick(), end);
  const Actions actions = dispatcher.Tick(end);

  EXPECT_THAT(Codes(actions), UnorderedElementsAre("worker_lost", "no_ready_worker"));
  EXPECT_EQ(dispatcher.requests(), 0u);
  EXPECT_EQ(dispatcher.NextTick(), absl::InfiniteDuration());
}

TEST(DispatcherFailoverTest, PatienceBeginsAnewWhenAGroupWasThereInBetween) {
  Dispatcher dispatcher({.resume_wait = absl::Seconds(30)});
  Join(dispatcher, kA, 1);
  dispatcher.OnProgress(OnlySequence(dispatcher.Submit(Ask(kFirst), kStart)), 1, kStart);
  dispatcher.OnGroupLost(kA, kStart);
  const absl::Duration back = kStart + absl::Seconds(20);
  const SequenceId resumed = OnlySequence(Join(dispatcher, Again(kA), 1, "same", back));
  dispatcher.OnProgress(resumed, 2, back);
  dispatcher.OnGroupLost(Again(kA), back + absl::Seconds(1));
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(50)), IsEmpty());
  EXPECT_THAT(Codes(dispatcher.Tick(kStart + absl::Seconds(51))), ElementsAre("worker_lost"));
}

TEST(DispatcherFailoverTest, PatienceDoesNotRunWhileAGroupIsThereButFull) {
  Dispatcher dispatcher({.lease = absl::Hours(1), .resume_wait = absl::Seconds(30)});
  for (const auto& [connection, id] : {std::pair{kA, kFirst}, {kB, kSecond}}) {
    Join(dispatcher, connection, 1);
    dispatcher.OnProgress(OnlySequence(dispatcher.Submit(Ask(id), kStart)), 1, kStart);
  }
  EXPECT_THAT(dispatcher.OnGroupLost(kA, kStart), IsEmpty());
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(40)), IsEmpty());
  dispatcher.OnGroupLost(kB, kStart + absl::Seconds(50));
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(79)), IsEmpty());
  EXPECT_THAT(Failed(dispatcher.Tick(kStart + absl::Seconds(80))), UnorderedElementsAre(kFirst, kSecond));
}

TEST(DispatcherFailoverTest, ASilentGroupIsLostWhenItsLeaseEnds) {
  Dispatcher dispatcher({.lease = absl::Seconds(5)});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  EXPECT_TRUE(dispatcher.OnResults(kA, 7, kStart + absl::Seconds(3)));
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(7.9)), IsEmpty());
  EXPECT_EQ(dispatcher.NextTick(), kStart + absl::Seconds(8));

  const Actions actions = dispatcher.Tick(kStart + absl::Seconds(8));

  EXPECT_THAT(Of<DropGroup>(actions), SizeIs(1));
  EXPECT_FALSE(dispatcher.HasReadyGroup("m"));
  EXPECT_EQ(dispatcher.requests(), 1u);
}

// Two groups fall silent together: what ran on one must not be placed on the other, which is as good as lost.
TEST(DispatcherFailoverTest, NothingIsPlacedOnAGroupWhoseLeaseEndsToo) {
  Dispatcher dispatcher({.lease = absl::Seconds(5)});
  Join(dispatcher, kA, 4);
  Join(dispatcher, kB, 4);
  dispatcher.Submit(Ask(kFirst), kStart);
  const Actions actions = dispatcher.Tick(kStart + absl::Seconds(5));
  EXPECT_THAT(Of<DropGroup>(actions), SizeIs(2));
  EXPECT_THAT(Of<SubmitSequence>(actions), IsEmpty());
}

TEST(DispatcherFailoverTest, ASilentGroupGetsNoWorkBeforeItIsHeardOfAgain) {
  Dispatcher dispatcher({.lease = absl::Seconds(5)});
  Join(dispatcher, kA, 4);
  Join(dispatcher, kB, 4, "same", kStart + absl::Seconds(1));
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.Submit(Ask(kSecond), kStart);
  dispatcher.Tick(kStart + absl::Seconds(3));
  dispatcher.Tick(kStart + absl::Seconds(4));
  const Actions actions = dispatcher.Tick(kStart + absl::Seconds(5));
  EXPECT_THAT(Of<DropGroup>(actions), SizeIs(1));
  EXPECT_THAT(Of<SubmitSequence>(actions), IsEmpty()) << "B was last heard of four seconds ago";
  const absl::Duration now = kStart + absl::Seconds(5.5);
  Admission next = Ask(kThird);
  next.accepted = now;
  EXPECT_THAT(dispatcher.Submit(next, now), IsEmpty()) << "it waits: the group is not lost yet";
  EXPECT_THAT(Of<SubmitSequence>(Beat(dispatcher, kB, now)), Not(IsEmpty()));
  dispatcher.CheckInvariants();
}

TEST(DispatcherFailoverTest, ResultsOfAnOldConnectionOrEpochAreDropped) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  EXPECT_TRUE(dispatcher.OnResults(kA, 7, kStart));
  EXPECT_TRUE(dispatcher.Owner(kA, sequence).has_value());
  EXPECT_FALSE(dispatcher.Owner(Again(kA), sequence).has_value());
  EXPECT_FALSE(dispatcher.Owner(kB, sequence).has_value());
  EXPECT_FALSE(dispatcher.OnResults(kA, 6, kStart));

  EXPECT_THAT(dispatcher.OnGroupJoined(Again(kA), Facts(1, "same", /*epoch=*/8), kStart), IsEmpty());
  EXPECT_FALSE(dispatcher.OnResults(kA, 7, kStart));
  EXPECT_FALSE(dispatcher.OnResults(Again(kA), 7, kStart));
  EXPECT_FALSE(dispatcher.Owner(Again(kA), sequence).has_value());
  EXPECT_THAT(dispatcher.OnHeartbeat(kA, {.epoch = 7, .ready = true}, kStart), IsEmpty());
  EXPECT_FALSE(dispatcher.HasReadyGroup("m"));
  EXPECT_THAT(Of<DropGroup>(dispatcher.OnHeartbeat(Again(kA), {.epoch = 9, .ready = true}, kStart)), SizeIs(1));
}

TEST(DispatcherFailoverTest, APoisonRequestFailsWithTheThirdGroupThatItTakesDown) {
  Dispatcher dispatcher({});
  Connection a = kA;
  Join(dispatcher, a, 4);
  dispatcher.Submit(Ask(kFirst), kStart);
  LoseAndReturn(dispatcher, a);
  LoseAndReturn(dispatcher, a);
  EXPECT_THAT(Codes(dispatcher.OnGroupLost(a, kStart)), ElementsAre("worker_lost"));
  EXPECT_EQ(dispatcher.requests(), 0u);
}

// Two innocent requests were twice on the group that the poison took down: one of the three is tried at a time, and
// what makes progress is suspected no longer.
TEST(DispatcherFailoverTest, SuspectsAreTriedOneByOneAndItsNeighboursSurviveThePoison) {
  Dispatcher dispatcher({});
  Connection a = kA;
  Join(dispatcher, a, 4);
  for (const RequestId id : {kFirst, kSecond, kThird}) dispatcher.Submit(Ask(id), kStart);
  dispatcher.OnGroupLost(a, kStart);
  a = Again(a);
  EXPECT_THAT(Placed(Join(dispatcher, a, 4)), ElementsAre(kFirst, kSecond, kThird));
  dispatcher.OnGroupLost(a, kStart);
  a = Again(a);

  const SubmitSequence first = OnlySubmit(Join(dispatcher, a, 4));
  EXPECT_EQ(first.request, kFirst);
  EXPECT_THAT(Placed(dispatcher.Submit(Ask(kFourth), kStart)), ElementsAre(kFourth)) << "others need not wait";
  const SubmitSequence poison = OnlySubmit(dispatcher.OnProgress(first.sequence, 1, kStart));
  EXPECT_EQ(poison.request, kSecond);
  EXPECT_THAT(dispatcher.OnProgress(first.sequence, 2, kStart), IsEmpty());

  EXPECT_THAT(Failed(dispatcher.OnGroupLost(a, kStart)), ElementsAre(kSecond));
  EXPECT_THAT(Placed(Join(dispatcher, Again(a), 4)), UnorderedElementsAre(kFirst, kFourth, kThird));
  dispatcher.CheckInvariants();
}

TEST(DispatcherFailoverTest, ProgressClearsTheCountOfLossesButNotOfResumes) {
  Dispatcher dispatcher({});
  Connection a = kA;
  Join(dispatcher, a, 4);
  SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  for (int resume = 1; resume <= 8; ++resume) {
    dispatcher.OnProgress(sequence, 1, kStart);
    // Other groups take over from one that fails again and again; here there is no other.
    sequence = LoseAndReturn(dispatcher, a).sequence;
  }
  dispatcher.OnProgress(sequence, 1, kStart);
  EXPECT_THAT(Codes(dispatcher.OnGroupLost(a, kStart)), ElementsAre("worker_lost"));
}

TEST(DispatcherFailoverTest, AGroupThatLeavesAsAnnouncedMakesNobodySuspect) {
  Dispatcher dispatcher({});
  Connection a = kA;
  Join(dispatcher, a, 4);
  dispatcher.Submit(Ask(kFirst), kStart);
  for (int i = 0; i < 4; ++i) {
    dispatcher.OnHeartbeat(a, {.epoch = 7, .ready = true, .draining = true}, kStart);
    EXPECT_THAT(Codes(dispatcher.OnGroupLost(a, kStart)), IsEmpty());
    a = Again(a);
    EXPECT_THAT(Placed(Join(dispatcher, a, 4)), ElementsAre(kFirst));
  }
}

TEST(DispatcherFailoverTest, WhatAGroupGivesBackGoesElsewhereAndNotBackAtOnce) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4);
  const SequenceId first = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  EXPECT_THAT(dispatcher.OnSequenceReturned(first, kStart), IsEmpty()) << "there is only the group that refused it";
  EXPECT_THAT(dispatcher.OnSequenceReturned(first, kStart), IsEmpty());
  const SubmitSequence again = OnlySubmit(Beat(dispatcher, kA));
  EXPECT_EQ(again.request, kFirst);

  Join(dispatcher, kB, 4);
  EXPECT_EQ(OnlySubmit(dispatcher.OnSequenceReturned(again.sequence, kStart)).to, kB);
}

TEST(DispatcherFailoverTest, WhatEveryGroupGivesBackIsOverloadInTheEnd) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 4);
  Actions actions = dispatcher.Submit(Ask(kFirst), kStart);
  for (int i = 0; i < 8; ++i) {
    EXPECT_THAT(dispatcher.OnSequenceReturned(OnlySequence(actions), kStart), IsEmpty());
    actions = Beat(dispatcher, kA);
  }
  EXPECT_THAT(Codes(dispatcher.OnSequenceReturned(OnlySequence(actions), kStart)), ElementsAre("server_is_overloaded"));
  EXPECT_EQ(dispatcher.requests(), 0u);
}

TEST(DispatcherFailoverTest, DeadlinesHoldWhileARequestWaitsToBeResumed) {
  Dispatcher dispatcher({.request_time_max = absl::Seconds(4)});
  Join(dispatcher, kA, 1);
  dispatcher.OnProgress(OnlySequence(dispatcher.Submit(Ask(kFirst), kStart)), 1, kStart);
  dispatcher.OnGroupLost(kA, kStart + absl::Seconds(1));
  EXPECT_EQ(dispatcher.NextTick(), kStart + absl::Seconds(4));
  EXPECT_THAT(Codes(dispatcher.Tick(kStart + absl::Seconds(4))), ElementsAre("deadline_exceeded"));
  EXPECT_THAT(Join(dispatcher, Again(kA), 1), IsEmpty());
}

TEST(DispatcherFailoverTest, ACancelledRequestIsNotResumed) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.OnGroupLost(kA, kStart);
  EXPECT_THAT(dispatcher.Cancel(kFirst, kStart), IsEmpty());
  EXPECT_THAT(Join(dispatcher, Again(kA), 1), IsEmpty());
}

TEST(DispatcherFailoverTest, ARemovedGroupIsForgottenAndItsWorkGoesOn) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  Join(dispatcher, kB, 1);
  EXPECT_EQ(OnlySubmit(dispatcher.OnGroupRemoved(kA.group, kStart)).to, kB);
  EXPECT_THAT(dispatcher.OnGroupRemoved(kA.group, kStart), IsEmpty());
  EXPECT_THAT(dispatcher.groups(), SizeIs(1));
}

}  // namespace
}  // namespace quicksilver
