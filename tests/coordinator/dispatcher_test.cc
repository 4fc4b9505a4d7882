#include "coordinator/core/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr absl::Duration kStart = absl::Seconds(1000);
constexpr RequestId kFirst{1}, kSecond{2}, kThird{3}, kFourth{4};
constexpr Connection kA{GroupId{0}, 1}, kB{GroupId{1}, 1};

Admission Ask(RequestId id, uint32_t choices = 1, uint64_t positions = 100) {
  return {.id = id,
          .model = "m",
          .choices = choices,
          .prompt_tokens = static_cast<uint32_t>(positions),
          .accepted = kStart};
}

void Join(Dispatcher& dispatcher, Connection connection, uint32_t sequences_max, uint64_t positions_max = 1000,
          const std::string& fingerprint = "same", absl::Duration now = kStart) {
  EXPECT_THAT(dispatcher.OnGroupJoined(connection,
                                       {.epoch = 7,
                                        .model = "m",
                                        .fingerprint = fingerprint,
                                        .sequences_max = sequences_max,
                                        .positions_max = positions_max},
                                       now),
              IsEmpty());
  dispatcher.OnHeartbeat(connection, {.epoch = 7, .ready = true}, now);
}

template <typename T>
std::vector<T> Of(const Actions& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
  }
  return found;
}

std::vector<std::string> Codes(const Actions& actions) {
  std::vector<std::string> codes;
  for (const FailRequest& failed : Of<FailRequest>(actions)) codes.push_back(failed.error.code);
  return codes;
}

std::vector<RequestId> Placed(const Actions& actions) {
  std::vector<RequestId> requests;
  for (const SubmitSequence& submit : Of<SubmitSequence>(actions)) requests.push_back(submit.request);
  return requests;
}

SequenceId OnlySequence(const Actions& actions) { return Of<SubmitSequence>(actions).at(0).sequence; }

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

TEST(DispatcherTest, PlacesOnTheGroupWithTheSmallestShareReserved) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 8, /*positions_max=*/1000);
  Join(dispatcher, kB, 8, /*positions_max=*/4000);
  const auto place = [&](RequestId id, uint64_t positions) {
    return Of<SubmitSequence>(dispatcher.Submit(Ask(id, 1, positions), kStart)).at(0).to;
  };
  EXPECT_EQ(place(kFirst, 100), kA);   // Both are empty: the first.
  EXPECT_EQ(place(kSecond, 300), kB);  // 0.1 against 0.
  EXPECT_EQ(place(kThird, 300), kB);   // 0.1 against 0.075.
  EXPECT_EQ(place(kFourth, 1), kA);    // 0.1 against 0.15.
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

TEST(DispatcherTest, ARequestIsNotSplitOverTwoFingerprints) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1, 1000, "one");
  Join(dispatcher, kB, 4, 1000, "other");
  const auto placed = Of<SubmitSequence>(dispatcher.Submit(Ask(kFirst, /*choices=*/2), kStart));
  ASSERT_THAT(placed, SizeIs(1));
  EXPECT_EQ(placed[0].to, kA);
  // It waits for its own group, and holds up nobody who can run elsewhere.
  EXPECT_THAT(Placed(dispatcher.Submit(Ask(kSecond), kStart)), ElementsAre(kSecond));
  EXPECT_THAT(Placed(dispatcher.OnSequenceEnded(placed[0].sequence, 0, kStart)), ElementsAre(kFirst));
}

TEST(DispatcherTest, ALostGroupEndsItsRequestsHonestlyAndFreesTheirOtherSequences) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  Join(dispatcher, kB, 2);
  dispatcher.Submit(Ask(kFirst, /*choices=*/2), kStart);  // One on each.
  dispatcher.Submit(Ask(kSecond), kStart);                // On B.

  const Actions actions = dispatcher.OnGroupLost(kA, kStart);

  EXPECT_THAT(Codes(actions), ElementsAre("worker_lost"));
  ASSERT_THAT(Of<CancelSequence>(actions), SizeIs(1));
  EXPECT_EQ(Of<CancelSequence>(actions)[0].to, kB);
  EXPECT_EQ(dispatcher.requests(), 1u);
}

TEST(DispatcherTest, WaitingRequestsAreToldWhenTheLastGroupIsLost) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.Submit(Ask(kSecond), kStart);
  EXPECT_THAT(Codes(dispatcher.OnGroupLost(kA, kStart)), ElementsAre("worker_lost", "no_ready_worker"));
  EXPECT_EQ(dispatcher.requests(), 0u);
}

TEST(DispatcherTest, ASilentGroupIsLostWhenItsLeaseEnds) {
  Dispatcher dispatcher({.lease = absl::Seconds(5)});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  EXPECT_TRUE(dispatcher.OnResults(kA, 7, kStart + absl::Seconds(3)));
  EXPECT_EQ(dispatcher.NextTick(), kStart + absl::Seconds(8));
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(7.9)), IsEmpty());

  const Actions actions = dispatcher.Tick(kStart + absl::Seconds(8));

  EXPECT_THAT(Of<DropGroup>(actions), SizeIs(1));
  EXPECT_THAT(Codes(actions), ElementsAre("worker_lost"));
  EXPECT_FALSE(dispatcher.HasReadyGroup("m"));
}

TEST(DispatcherTest, ResultsOfAnOldConnectionOrEpochAreDropped) {
  Dispatcher dispatcher({});
  Join(dispatcher, kA, 1);
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  EXPECT_TRUE(dispatcher.OnResults(kA, 7, kStart));
  EXPECT_TRUE(dispatcher.Owner(kA, sequence).has_value());
  EXPECT_FALSE(dispatcher.OnResults(kA, 6, kStart));

  const Connection again{GroupId{0}, 2};
  EXPECT_THAT(Codes(dispatcher.OnGroupJoined(again, {.epoch = 8, .model = "m"}, kStart)), ElementsAre("worker_lost"));
  EXPECT_FALSE(dispatcher.OnResults(kA, 7, kStart));
  EXPECT_FALSE(dispatcher.OnResults(again, 7, kStart));
  EXPECT_FALSE(dispatcher.Owner(again, sequence).has_value());
  EXPECT_THAT(Of<DropGroup>(dispatcher.OnHeartbeat(again, {.epoch = 9, .ready = true}, kStart)), SizeIs(1));
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

TEST(DispatcherTest, RefusesWorkWhoseWaitWouldBeTooLong) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(15)});
  Join(dispatcher, kA, 1);
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(kFirst), kStart));
  dispatcher.OnHeartbeat(kA, {.epoch = 7, .ready = true}, kStart + absl::Seconds(4));
  dispatcher.OnSequenceEnded(sequence, 0, kStart + absl::Seconds(10));  // Ten seconds a sequence.
  const absl::Duration now = kStart + absl::Seconds(10);
  dispatcher.OnHeartbeat(kA, {.epoch = 7, .ready = true}, now);
  dispatcher.Submit(Ask(kSecond), now);
  EXPECT_THAT(dispatcher.Submit(Ask(kThird), now), IsEmpty());
  const auto refused = Of<FailRequest>(dispatcher.Submit(Ask(kFourth), now));
  ASSERT_THAT(refused, SizeIs(1));
  EXPECT_EQ(refused[0].rejection, Rejection::kDeadline);
  EXPECT_GE(refused[0].error.retry_after_seconds, 20);  // Twenty seconds, and up to half as much again.
  EXPECT_LE(refused[0].error.retry_after_seconds, 30);

  Admission hasty = Ask(RequestId{5});
  hasty.accepted = now;
  hasty.time_max = absl::Seconds(5);
  EXPECT_THAT(Of<FailRequest>(dispatcher.Submit(hasty, now)), SizeIs(1));
}

TEST(DispatcherTest, DeadlinesEndRequestsInTheQueueAndOnAGroup) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(2), .request_time_max = absl::Seconds(4)});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.Submit(Ask(kSecond), kStart);
  Admission hasty = Ask(kThird);
  hasty.time_max = absl::Seconds(1);
  dispatcher.Submit(hasty, kStart);

  EXPECT_EQ(dispatcher.NextTick(), kStart + absl::Seconds(1));
  EXPECT_THAT(Codes(dispatcher.Tick(kStart + absl::Seconds(1))), ElementsAre("deadline_exceeded"));
  EXPECT_THAT(Codes(dispatcher.Tick(kStart + absl::Seconds(2))), ElementsAre("server_is_overloaded"));
  const Actions last = dispatcher.Tick(kStart + absl::Seconds(4));
  EXPECT_THAT(Codes(last), ElementsAre("deadline_exceeded"));
  EXPECT_THAT(Of<CancelSequence>(last), SizeIs(1));
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
