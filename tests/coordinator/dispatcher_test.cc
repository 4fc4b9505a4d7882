#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/dispatcher_support.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(DispatcherTest, RefusesAtOnceWhileNoGroupOfTheModelIsReady) {
  Dispatcher dispatcher({});
  dispatcher.OnGroupJoined(kA, {.epoch = 7, .model = "m"}, kStart);
  EXPECT_THAT(Codes(dispatcher.Submit(Ask(kFirst), kStart)), ElementsAre("no_ready_worker"));

  dispatcher.OnHeartbeat(kA, {.epoch = 7, .ready = true}, kStart);
  Admission other = Ask(kSecond);
  other.model = "another";
  EXPECT_THAT(Codes(dispatcher.Submit(other, kStart)), ElementsAre("no_ready_worker"));
  EXPECT_THAT(Placed(dispatcher.Submit(Ask(kThird), kStart)), ElementsAre(kThird));
}

TEST(DispatcherTest, RunsNoMoreThanTheGroupTakesAndTheRestInOrder) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  const Actions first = dispatcher.Submit(Ask(kFirst), kStart);
  EXPECT_THAT(dispatcher.Submit(Ask(kSecond), kStart), IsEmpty());
  EXPECT_THAT(dispatcher.Submit(Ask(kThird), kStart), IsEmpty());
  EXPECT_EQ(dispatcher.waiting(), 2u);
  EXPECT_EQ(dispatcher.running(), 1u);

  const Actions next = dispatcher.OnSequenceEnded(OnlySequence(first), 0, kStart);
  EXPECT_THAT(Of<CompleteRequest>(next), SizeIs(1));
  EXPECT_THAT(Placed(next), ElementsAre(kSecond));
  EXPECT_THAT(Placed(dispatcher.OnSequenceEnded(OnlySequence(next), 0, kStart)), ElementsAre(kThird));
}

TEST(DispatcherTest, ChoicesAreSequencesAndTheRequestEndsWithTheLast) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 2);
  const auto placed = Of<SubmitSequence>(dispatcher.Submit(Ask(kFirst, /*choices=*/3), kStart));
  ASSERT_THAT(placed, SizeIs(2));
  EXPECT_EQ(placed[0].choice, 0u);
  EXPECT_EQ(placed[1].choice, 1u);

  const Actions third = dispatcher.EndSequence(placed[0].sequence, 0, kStart);
  EXPECT_THAT(Of<CancelSequence>(third), SizeIs(1));
  ASSERT_THAT(Of<SubmitSequence>(third), SizeIs(1));
  EXPECT_EQ(Of<SubmitSequence>(third)[0].choice, 2u);
  EXPECT_THAT(dispatcher.OnSequenceEnded(placed[1].sequence, 0, kStart), IsEmpty());
  EXPECT_THAT(Of<CompleteRequest>(dispatcher.OnSequenceEnded(OnlySequence(third), 0, kStart)), SizeIs(1));
  EXPECT_EQ(dispatcher.requests(), 0u);
}

TEST(DispatcherTest, CancelTellsTheWorkerAndLetsTheNextRun) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  dispatcher.Submit(Ask(kSecond), kStart);
  dispatcher.Submit(Ask(kThird), kStart);
  EXPECT_THAT(dispatcher.Cancel(kSecond, kStart), IsEmpty());

  const Actions actions = dispatcher.Cancel(kFirst, kStart);

  ASSERT_THAT(actions, SizeIs(2));
  EXPECT_EQ(std::get<CancelSequence>(actions[0]).sequence, sequence);
  EXPECT_EQ(std::get<SubmitSequence>(actions[1]).request, kThird);
  EXPECT_THAT(dispatcher.OnSequenceEnded(sequence, 0, kStart), IsEmpty());
}

TEST(DispatcherTest, TheQueueIsBoundedInRequestsAndInTokens) {
  Dispatcher dispatcher({.queue_requests_max = 2, .queue_tokens_max = 500});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  EXPECT_THAT(dispatcher.Submit(Ask(kSecond, 1, 400), kStart), IsEmpty());
  const auto too_many_tokens = Of<FailRequest>(dispatcher.Submit(Ask(kThird, 2, 51), kStart));
  ASSERT_THAT(too_many_tokens, SizeIs(1));
  EXPECT_EQ(too_many_tokens[0].error.http_status, 503);
  EXPECT_EQ(too_many_tokens[0].error.code, "server_is_overloaded");
  EXPECT_GE(too_many_tokens[0].error.retry_after_seconds, 1);
  EXPECT_EQ(too_many_tokens[0].rejection, Rejection::kQueueFull);
  EXPECT_THAT(dispatcher.Submit(Ask(kFourth, 2, 50), kStart), IsEmpty());
  EXPECT_THAT(Codes(dispatcher.Submit(Ask(RequestId{5}, 1, 1), kStart)), ElementsAre("server_is_overloaded"));
}

TEST(DispatcherTest, DrainingRefusesNewWorkAndFinishesTheOld) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  dispatcher.Submit(Ask(kSecond), kStart);
  dispatcher.StopAdmission();
  EXPECT_THAT(Codes(dispatcher.Submit(Ask(kThird), kStart)), ElementsAre("shutting_down"));
  EXPECT_THAT(Placed(dispatcher.OnSequenceEnded(sequence, 0, kStart)), ElementsAre(kSecond));
}

TEST(DispatcherTest, AGroupThatStopsBeingReadyKeepsItsWorkAndGetsNoMore) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  Join(dispatcher, kB, 1);
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  EXPECT_THAT(dispatcher.OnHeartbeat(kA, {.epoch = 7, .ready = false}, kStart), IsEmpty());
  EXPECT_EQ(Of<SubmitSequence>(dispatcher.Submit(Ask(kSecond), kStart)).at(0).to, kB);
  EXPECT_THAT(dispatcher.Submit(Ask(kThird), kStart), IsEmpty());
  EXPECT_THAT(Placed(dispatcher.OnSequenceEnded(sequence, 0, kStart)), IsEmpty());
  EXPECT_THAT(Placed(dispatcher.OnHeartbeat(kA, {.epoch = 7, .ready = true}, kStart)), ElementsAre(kThird));
}

}  // namespace
}  // namespace quicksilver
