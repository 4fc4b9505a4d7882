#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/dispatcher_support.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr Priority kInteractive = Priority::kInteractive, kDefault = Priority::kDefault, kBatch = Priority::kBatch;

// One sequence takes ten seconds, on a group that runs one.
void LearnThatSequencesTakeTenSeconds(Dispatcher& dispatcher) {
  const SequenceId sequence = OnlySequence(dispatcher.Submit(Ask(RequestId{1000}), kStart - absl::Seconds(10)));
  dispatcher.OnSequenceEnded(sequence, 0, kStart);
}

TEST(DispatcherOverloadTest, RefusesWorkWhoseWaitWouldBeTooLong) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(15)});
  Join(dispatcher, kA, 1, "same", kStart - absl::Seconds(10));
  LearnThatSequencesTakeTenSeconds(dispatcher);
  dispatcher.Submit(Ask(kFirst), kStart);
  EXPECT_THAT(dispatcher.Submit(Ask(kSecond), kStart), IsEmpty());
  const auto refused = Of<FailRequest>(dispatcher.Submit(Ask(kThird), kStart));
  ASSERT_THAT(refused, SizeIs(1));
  EXPECT_EQ(refused[0].rejection, Rejection::kDeadline);
  EXPECT_GE(refused[0].error.retry_after_seconds, 20);  // Twenty seconds, and up to half as much again.
  EXPECT_LE(refused[0].error.retry_after_seconds, 30);

  Admission hasty = Ask(kFourth);
  hasty.time_max = absl::Seconds(5);
  EXPECT_THAT(Codes(dispatcher.Submit(hasty, kStart)), ElementsAre("server_is_overloaded"));
}

TEST(DispatcherOverloadTest, LowerClassesAheadDoNotCountAgainstAHigherOne) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(15)});
  Join(dispatcher, kA, 1, "same", kStart - absl::Seconds(10));
  LearnThatSequencesTakeTenSeconds(dispatcher);
  dispatcher.Submit(Ask(kFirst), kStart);
  EXPECT_THAT(dispatcher.Submit(AskAs(kSecond, kBatch), kStart), IsEmpty());
  EXPECT_THAT(dispatcher.Submit(AskAs(kThird, kInteractive), kStart), IsEmpty());
  EXPECT_THAT(Codes(dispatcher.Submit(AskAs(kFourth, kBatch), kStart)), ElementsAre("server_is_overloaded"));
}

TEST(DispatcherOverloadTest, AFullQueueShedsTheYoungestOfTheLowestClassFirst) {
  Dispatcher dispatcher({.queue_requests_max = 4});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(AskAs(RequestId{9}, kBatch), kStart);  // It runs.
  dispatcher.Submit(AskAs(kFirst, kBatch), kStart);
  dispatcher.Submit(AskAs(kSecond, kDefault), kStart);
  dispatcher.Submit(AskAs(kThird, kBatch), kStart);
  dispatcher.Submit(AskAs(kFourth, kInteractive), kStart);
  const auto shed = [&](uint64_t id, Priority priority) {
    return dispatcher.Submit(AskAs(RequestId{id}, priority), kStart);
  };

  const Actions actions = shed(5, kInteractive);
  EXPECT_THAT(Failed(actions), ElementsAre(kThird));
  EXPECT_THAT(Codes(actions), ElementsAre("server_is_overloaded"));
  EXPECT_EQ(Of<FailRequest>(actions)[0].rejection, Rejection::kShed);
  EXPECT_GE(Of<FailRequest>(actions)[0].error.retry_after_seconds, 1);
  EXPECT_THAT(Failed(shed(6, kInteractive)), ElementsAre(kFirst));
  EXPECT_THAT(Failed(shed(7, kDefault)), ElementsAre(RequestId{7})) << "none of a lower class is left but what runs";
  EXPECT_THAT(Failed(shed(8, kInteractive)), ElementsAre(kSecond));
  EXPECT_THAT(Failed(shed(10, kInteractive)), ElementsAre(RequestId{10}));
  EXPECT_EQ(dispatcher.waiting(), 4u);
  EXPECT_EQ(dispatcher.running(), 1u);
  dispatcher.CheckInvariants();
}

TEST(DispatcherOverloadTest, NobodyIsShedForARequestThatWouldNotFitAnyway) {
  Dispatcher dispatcher({.queue_tokens_max = 500});
  Join(dispatcher, kA, 1);
  dispatcher.Submit(Ask(kFirst), kStart);
  dispatcher.Submit(AskAs(kSecond, kBatch), kStart);
  Admission large = Ask(kThird, 1, 501);
  large.priority = kInteractive;
  EXPECT_THAT(Failed(dispatcher.Submit(large, kStart)), ElementsAre(kThird));
  large.id = kFourth;
  large.prompt_tokens = 450;
  EXPECT_THAT(Failed(dispatcher.Submit(large, kStart)), ElementsAre(kSecond));
}

// A tenant that floods the queue must not keep the others out of it.
TEST(DispatcherOverloadTest, AFullQueueShedsTheTenantThatHasMostInItForItsWeight) {
  DispatcherOptions options{.queue_requests_max = 6};
  options.tenants.tenants["heavy"].weight = 2;
  Dispatcher dispatcher(options);
  Join(dispatcher, kA, 1);
  const auto submit = [&](uint64_t id, const std::string& tenant) {
    Admission admission = Ask(RequestId{id});
    admission.tenant = tenant;
    return dispatcher.Submit(admission, kStart);
  };
  submit(100, "flood");
  for (uint64_t id = 1; id <= 6; ++id) EXPECT_THAT(submit(id, "flood"), IsEmpty());
  EXPECT_THAT(Failed(submit(7, "flood")), ElementsAre(RequestId{7}));
  EXPECT_THAT(Failed(submit(11, "other")), ElementsAre(RequestId{6}));
  EXPECT_THAT(Failed(submit(12, "other")), ElementsAre(RequestId{5}));
  EXPECT_THAT(Failed(submit(13, "other")), ElementsAre(RequestId{13})) << "four are not far more than three";
  EXPECT_THAT(Failed(submit(21, "heavy")), SizeIs(1));
  EXPECT_EQ(dispatcher.tenants().Usage("heavy").queued, 1u);
  EXPECT_EQ(dispatcher.waiting(), 6u);
  dispatcher.CheckInvariants();
}

TEST(DispatcherOverloadTest, WhatAnotherTenantHasWaitingDoesNotMakeTheWaitTooLong) {
  Dispatcher dispatcher({.queue_time_max = absl::Seconds(50)});
  Join(dispatcher, kA, 1, "same", kStart - absl::Seconds(10));
  LearnThatSequencesTakeTenSeconds(dispatcher);
  const auto submit = [&](uint64_t id, const std::string& tenant) {
    Admission admission = Ask(RequestId{id});
    admission.tenant = tenant;
    return dispatcher.Submit(admission, kStart);
  };
  submit(100, "flood");
  for (uint64_t id = 1; id <= 5; ++id) EXPECT_THAT(submit(id, "flood"), IsEmpty());
  EXPECT_THAT(Codes(submit(6, "flood")), ElementsAre("server_is_overloaded")) << "it would wait for sixty seconds";
  EXPECT_THAT(submit(11, "other"), IsEmpty()) << "every other turn is its own: twenty seconds";
  EXPECT_THAT(submit(12, "other"), IsEmpty());
  EXPECT_THAT(Codes(submit(13, "other")), ElementsAre("server_is_overloaded"));
}

TEST(DispatcherOverloadTest, HigherClassesGoFirstAndLowerOnesAge) {
  Dispatcher dispatcher({.ageing = absl::Seconds(10)});
  Join(dispatcher, kA, 1);
  SequenceId running = OnlySequence(dispatcher.Submit(Ask(RequestId{100}), kStart));
  dispatcher.Submit(AskAs(kFirst, kBatch), kStart);
  // An interactive request comes whenever one ends: for ever there is one to prefer.
  uint64_t id = 200;
  absl::Duration now = kStart;
  dispatcher.Submit(AskAs(RequestId{id}, kInteractive), now);
  for (int second = 0; second < 60; ++second) {
    now += absl::Seconds(1);
    Beat(dispatcher, kA, now);
    Admission next = AskAs(RequestId{++id}, kInteractive);
    next.accepted = now;
    dispatcher.Submit(next, now);
    const SubmitSequence started = OnlySubmit(dispatcher.OnSequenceEnded(running, 0, now));
    running = started.sequence;
    if (started.request == kFirst) break;
  }
  EXPECT_GE(now, kStart + absl::Seconds(20));
  EXPECT_LE(now, kStart + absl::Seconds(22)) << "two classes below: twice the ageing";
}

TEST(DispatcherOverloadTest, TenantsShareAGroupByTheirWeights) {
  DispatcherOptions options{.queue_time_max = absl::Seconds(500)};
  options.tenants.tenants["heavy"].weight = 3;
  Dispatcher dispatcher(options);
  Join(dispatcher, kA, 1);
  SequenceId running = OnlySequence(dispatcher.Submit(Ask(RequestId{1000}), kStart));
  for (uint64_t i = 0; i < 200; ++i) {
    Admission admission = Ask(RequestId{i + 1});
    admission.tenant = i < 100 ? "heavy" : "light";
    dispatcher.Submit(admission, kStart);
  }
  int heavy = 0;
  for (int i = 0; i < 40; ++i) {
    const SubmitSequence started = OnlySubmit(dispatcher.OnSequenceEnded(running, 0, kStart));
    running = started.sequence;
    heavy += static_cast<uint64_t>(started.request) <= 100 ? 1 : 0;
  }
  EXPECT_EQ(heavy, 30);
}

TEST(DispatcherOverloadTest, OverItsLimitATenantHears429AndTheOthersDoNot) {
  DispatcherOptions options;
  options.tenants.tenants["a"].requests_per_minute = 2;
  Dispatcher dispatcher(options);
  Join(dispatcher, kA, 8);
  const auto submit = [&](RequestId id, const std::string& tenant) {
    Admission admission = Ask(id);
    admission.tenant = tenant;
    return Of<FailRequest>(dispatcher.Submit(admission, kStart));
  };
  EXPECT_THAT(submit(kFirst, "a"), IsEmpty());
  EXPECT_THAT(submit(kSecond, "a"), IsEmpty());
  const auto refused = submit(kThird, "a");
  ASSERT_THAT(refused, SizeIs(1));
  EXPECT_EQ(refused[0].error.http_status, 429);
  EXPECT_EQ(refused[0].error.code, "rate_limit_exceeded");
  EXPECT_EQ(refused[0].error.retry_after_seconds, 30);
  EXPECT_EQ(refused[0].rejection, Rejection::kTenantLimit);
  EXPECT_THAT(submit(kFourth, "b"), IsEmpty());
  EXPECT_EQ(dispatcher.Rates("a", kStart).requests->remaining, 0u);
}

// serving.md §8.6: whoever is over several limits at once hears of the first of them.
TEST(DispatcherOverloadTest, ChecksComeInTheirOrder) {
  DispatcherOptions options{.queue_requests_max = 1};
  options.tenants.tenants["a"].concurrent_requests_max = 0;
  Dispatcher dispatcher(options);
  Admission admission = Ask(kFirst);
  admission.tenant = "a";
  EXPECT_THAT(Codes(dispatcher.Submit(admission, kStart)), ElementsAre("rate_limit_exceeded"));
  admission.tenant = "b";
  EXPECT_THAT(Codes(dispatcher.Submit(admission, kStart)), ElementsAre("no_ready_worker"));
  admission.time_max = absl::ZeroDuration();
  EXPECT_THAT(Codes(dispatcher.Submit(admission, kStart)), ElementsAre("deadline_exceeded"));
  dispatcher.StopAdmission();
  EXPECT_THAT(Codes(dispatcher.Submit(admission, kStart)), ElementsAre("shutting_down"));
}

TEST(DispatcherOverloadTest, WhatWasReservedComesBackHoweverARequestEnds) {
  DispatcherOptions options{.queue_requests_max = 1};
  options.tenants.tenants["a"].requests_per_minute = 10;
  Dispatcher dispatcher(options);
  Join(dispatcher, kA, 1);
  const auto ask = [](uint64_t id, Priority priority) {
    Admission admission = AskAs(RequestId{id}, priority);
    admission.tenant = "a";
    admission.max_tokens = 50;
    return admission;
  };
  const SequenceId first = OnlySequence(dispatcher.Submit(ask(1, kDefault), kStart));
  EXPECT_EQ(dispatcher.tenants().Usage("a").reserved.output, 50u);
  dispatcher.Submit(ask(2, kBatch), kStart);
  EXPECT_THAT(Failed(dispatcher.Submit(ask(3, kDefault), kStart)), ElementsAre(kSecond));
  dispatcher.OnProgress(first, 10, kStart);
  const SequenceId third = OnlySequence(dispatcher.OnSequenceEnded(first, 20, kStart));
  dispatcher.OnProgress(third, 7, kStart);
  dispatcher.Cancel(kThird, kStart);
  const TenantUsage usage = dispatcher.tenants().Usage("a");
  EXPECT_EQ(usage.requests, 0u);
  EXPECT_EQ(usage.reserved.input + usage.reserved.output, 0u);
  EXPECT_EQ(usage.used.input, 200u) << "the one that was shed used nothing";
  EXPECT_EQ(usage.used.output, 27u);
  EXPECT_EQ(dispatcher.Rates("a", kStart).requests->remaining, 8u) << "nor does it count against the rate";
}

TEST(DispatcherOverloadTest, DeadlinesEndRequestsInTheQueueAndOnAGroup) {
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

TEST(DispatcherOverloadTest, ARequestWithALatencyTargetIsTheWorkersToEndAtFirst) {
  Dispatcher dispatcher({.target_grace = absl::Seconds(2)});
  Join(dispatcher, kA, 1);
  Admission admission = Ask(kFirst);
  admission.latency_target = absl::Seconds(3);
  dispatcher.Submit(admission, kStart);
  EXPECT_THAT(dispatcher.Tick(kStart + absl::Seconds(4.9)), IsEmpty());
  EXPECT_THAT(Codes(dispatcher.Tick(kStart + absl::Seconds(5))), ElementsAre("deadline_exceeded"));
}

TEST(DispatcherOverloadTest, NoWorkStartsForWhichTheTimeLeftIsFarTooShort) {
  Dispatcher dispatcher({.request_time_max = absl::Hours(1), .lease = absl::Hours(1)});
  Join(dispatcher, kA, 1);
  absl::Duration now = kStart;
  const auto ask = [&](uint64_t id, absl::Duration time_max) {
    Admission admission = Ask(RequestId{id});
    admission.accepted = now;
    admission.time_max = time_max;
    return admission;
  };
  // Too few were seen to judge by.
  EXPECT_THAT(Placed(dispatcher.Submit(ask(1, absl::Seconds(1)), now)), SizeIs(1));
  dispatcher.Cancel(RequestId{1}, now);
  for (uint64_t id = 2; id < 40; ++id) {
    const SequenceId sequence = OnlySequence(dispatcher.Submit(ask(id, absl::InfiniteDuration()), now));
    now += absl::Seconds(10);
    dispatcher.OnSequenceEnded(sequence, 0, now);
  }
  EXPECT_THAT(Codes(dispatcher.Submit(ask(50, absl::Seconds(4)), now)), ElementsAre("deadline_exceeded"));
  Admission target = ask(51, absl::InfiniteDuration());
  target.latency_target = absl::Seconds(1);
  const SequenceId running = OnlySequence(dispatcher.Submit(target, now));
  EXPECT_THAT(dispatcher.Submit(ask(52, absl::Seconds(11)), now), IsEmpty());
  now += absl::Seconds(8);
  // In the queue it lost the time that it would have needed.
  EXPECT_THAT(Codes(dispatcher.OnSequenceEnded(running, 0, now)), ElementsAre("deadline_exceeded"));
}

// What was seen of large ones says nothing about a small one, and what was seen long ago nothing at all.
TEST(DispatcherOverloadTest, WorkIsOnlyJudgedByWorkOfItsSizeThatWasDoneLately) {
  Dispatcher dispatcher({.request_time_max = absl::Hours(1), .lease = absl::Hours(1)});
  Join(dispatcher, kA, 8);
  absl::Duration now = kStart;
  const auto ask = [&](uint64_t id, uint32_t prompt_tokens, uint32_t max_tokens) {
    Admission admission = Ask(RequestId{id}, 1, prompt_tokens);
    admission.max_tokens = max_tokens;
    admission.accepted = now;
    if (id >= 100) admission.time_max = absl::Seconds(10);
    return dispatcher.Submit(admission, now);
  };
  for (uint64_t id = 1; id <= 40; ++id) {
    const SequenceId sequence = OnlySequence(ask(id, 100, 2000));
    now += absl::Seconds(40);
    dispatcher.OnSequenceEnded(sequence, 2000, now);
  }
  EXPECT_THAT(Codes(ask(100, 100, 2000)), ElementsAre("deadline_exceeded"));
  EXPECT_THAT(Placed(ask(101, 100, 8)), SizeIs(1)) << "a short answer";
  EXPECT_THAT(Placed(ask(102, 10, 2000)), SizeIs(1)) << "a short prompt";
  now += absl::Seconds(61);
  EXPECT_THAT(Placed(ask(103, 100, 2000)), SizeIs(1)) << "it may go faster by now";
}

// Those who run on tripped groups alone keep their places there; for a new request there are none.
TEST(DispatcherOverloadTest, PlacesOnTrippedGroupsDoNotOpenAFullQueue) {
  Dispatcher dispatcher({.queue_requests_max = 1, .queue_tokens_max = 500});
  Connection tripped = kB;
  for (size_t i = 0; i < CircuitBreaker::kFailuresMax; ++i, tripped = Again(tripped)) {
    Join(dispatcher, tripped, 4, "b");
    dispatcher.OnGroupLost(tripped, kStart);
  }
  Join(dispatcher, tripped, 4, "b");
  Join(dispatcher, kA, 1, "a");
  EXPECT_THAT(Placed(dispatcher.Submit(Ask(kFirst), kStart)), SizeIs(1));
  EXPECT_THAT(Codes(dispatcher.Submit(Ask(kSecond, 1, 501), kStart)), ElementsAre("server_is_overloaded"));
  EXPECT_THAT(dispatcher.Submit(Ask(kThird), kStart), IsEmpty());
  EXPECT_THAT(Codes(dispatcher.Submit(Ask(kFourth), kStart)), ElementsAre("server_is_overloaded"));
  EXPECT_EQ(dispatcher.waiting(), 1u);
  dispatcher.CheckInvariants();
}

TEST(DispatcherOverloadTest, AFloodOfOneModelNeitherClosesNorShedsTheQueueOfAnother) {
  Dispatcher dispatcher({.queue_requests_max = 2});
  Join(dispatcher, kA, 1);
  GroupFacts facts = Facts(1);
  facts.model = "n";
  dispatcher.OnGroupJoined(kB, facts, kStart);
  Beat(dispatcher, kB);
  const auto submit = [&](uint64_t id, const std::string& model, Priority priority) {
    Admission admission = AskAs(RequestId{id}, priority);
    admission.model = model;
    return dispatcher.Submit(admission, kStart);
  };
  for (uint64_t id = 1; id <= 3; ++id) submit(id, "m", kDefault);
  EXPECT_THAT(Codes(submit(4, "m", kDefault)), ElementsAre("server_is_overloaded"));
  EXPECT_THAT(Placed(submit(11, "n", kBatch)), SizeIs(1));
  EXPECT_THAT(submit(12, "n", kBatch), IsEmpty());
  EXPECT_THAT(Failed(submit(5, "m", kInteractive)), ElementsAre(kThird)) << "not the batch request of the other model";
  EXPECT_EQ(dispatcher.waiting(), 3u);
  dispatcher.CheckInvariants();
}

}  // namespace
}  // namespace quicksilver
