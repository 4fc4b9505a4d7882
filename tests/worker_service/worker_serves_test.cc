#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker_service/worker_process.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kSoon = absl::Seconds(5);
const std::string kModel = "--model=models/demo";

std::string Ranks(int count) { return absl::StrCat("--tensor-parallel-size=", count); }

TEST(WorkerServesTest, TheGroupDescribesItselfAtOnceAndThenBeatsEverySecond) {
  WorkerProcess worker({kModel, Ranks(2), "--group-name=alpha", "--served-model-name=coder"});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  const v1::WorkerMessage first = coordinator.Next();
  ASSERT_TRUE(first.has_info()) << worker.process().output();
  EXPECT_EQ(first.info().group(), "alpha");
  EXPECT_EQ(first.info().model(), "coder");
  EXPECT_EQ(first.info().tensor_parallel_size(), 2u);
  EXPECT_EQ(first.info().fingerprint().size(), 64u);
  EXPECT_EQ(first.info().tokenizer_digest().size(), 64u);
  EXPECT_GT(first.info().epoch(), 1u);
  ASSERT_TRUE(coordinator.AwaitReady());
  const absl::Time start = absl::Now();
  for (int beat = 0; beat < 2; ++beat) {
    const v1::WorkerMessage message = coordinator.Next();
    ASSERT_TRUE(message.has_heartbeat());
    EXPECT_EQ(message.heartbeat().epoch(), first.info().epoch());
    EXPECT_EQ(message.heartbeat().pages_free(), first.info().pages_total());
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(4));
}

TEST(WorkerServesTest, OneTwoAndFourRanksGiveTheSameTokens) {
  std::vector<TestCoordinator::Answer> answers;
  for (const int ranks : {1, 2, 4}) {
    WorkerProcess worker({kModel, Ranks(ranks)});
    TestCoordinator coordinator(worker.address());
    coordinator.Hello();
    ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
    coordinator.Submit(7, 48);
    answers.push_back(coordinator.AwaitEnd(7));
    ASSERT_FALSE(answers.back().lost);
    EXPECT_GT(answers.back().end.forwards(), 0u);
  }
  for (const TestCoordinator::Answer& answer : answers) {
    EXPECT_EQ(answer.tokens, answers[0].tokens);
    EXPECT_EQ(answer.end.reason(), answers[0].end.reason());
  }
}

TEST(WorkerServesTest, ASequenceThatCanNeverRunIsRefusedWithNumbersAndTheStreamLives) {
  WorkerProcess worker({kModel});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  coordinator.Submit(1, 1000000);
  const TestCoordinator::Answer refused = coordinator.AwaitEnd(1);
  EXPECT_EQ(refused.end.reason(), v1::SequenceEnd::REASON_ERROR);
  EXPECT_EQ(refused.end.error_code(), "invalid_value");
  EXPECT_THAT(refused.end.error_message(), HasSubstr("1000000"));
  coordinator.Submit(2, 16);
  EXPECT_FALSE(coordinator.AwaitEnd(2).lost);
}

TEST(WorkerServesTest, ACancelledSequenceEndsAndGivesItsPagesBack) {
  WorkerProcess worker({kModel});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  coordinator.Submit(1, 400, "slow");
  while (coordinator.Next().step().updates_size() == 0) {
  }
  coordinator.Cancel(1);
  EXPECT_EQ(coordinator.AwaitEnd(1).end.reason(), v1::SequenceEnd::REASON_CANCELLED);
  EXPECT_TRUE(coordinator.AwaitBeat([](const v1::Heartbeat& beat) { return beat.sequences_running() == 0; }));
}

TEST(WorkerServesTest, ACoordinatorThatDisconnectsLeavesNothingBehind) {
  WorkerProcess worker({kModel, Ranks(2)});
  TestCoordinator watcher(worker.address());
  watcher.Hello();
  ASSERT_TRUE(watcher.AwaitReady()) << worker.process().output();
  TestCoordinator leaver(worker.address());
  leaver.Hello();
  const uint64_t pages = leaver.Next().info().pages_total();
  // More than run at once and long: some still wait when the stream breaks.
  for (uint64_t id = 1; id <= 100; ++id) leaver.Submit(id, 400, "slow");
  ASSERT_TRUE(watcher.AwaitBeat(
      [&](const v1::Heartbeat& beat) { return beat.sequences_running() > 0 && beat.pages_free() < pages; }));
  leaver.Disconnect();
  EXPECT_TRUE(watcher.AwaitBeat([&](const v1::Heartbeat& beat) {
    return beat.pages_free() == pages && beat.sequences_running() == 0 && beat.sequences_waiting() == 0;
  }));
}

TEST(WorkerServesTest, HealthAndMetricsTellWhereTheGroupStands) {
  WorkerProcess worker({kModel, Ranks(2), "--served-model-name=coder", "--group-name=alpha"});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  coordinator.Submit(1, 32);
  ASSERT_FALSE(coordinator.AwaitEnd(1).lost);
  for (const char* page : {"/health", "/health/live", "/health/ready"}) {
    EXPECT_THAT(worker.Get(page), HasSubstr(" 200 ")) << page;
  }
  for (const char* service : {"", "liveness", "readiness"}) EXPECT_EQ(CheckHealth(worker.address(), service), 1);
  EXPECT_EQ(CheckHealth(worker.address(), "nonsense"), -1);
  const std::string metrics = worker.Get("/metrics");
  for (const char* line : {"quicksilver_worker_up{model_name=\"coder\",group=\"alpha\"} 1\n",
                           "quicksilver_worker_group_size{model_name=\"coder\",group=\"alpha\"} 2\n",
                           "quicksilver_worker_group_size_desired{model_name=\"coder\",group=\"alpha\"} 2\n",
                           "quicksilver_num_requests_running{model_name=\"coder\"} 0\n",
                           "quicksilver_num_requests_waiting{model_name=\"coder\"} 0\n",
                           "quicksilver_num_requests_preempted{model_name=\"coder\"} 0\n",
                           "quicksilver_prefix_cache_hits_total{model_name=\"coder\"} 0\n",
                           "quicksilver_preemptions_total{model_name=\"coder\",reason=\"kv_pages\"} 0\n",
                           "quicksilver_numerical_errors_total{model_name=\"coder\",reason=\"logits\"} 0\n",
                           "quicksilver_kv_cache_usage_ratio{model_name=\"coder\",pool=\"alpha\"} 0\n",
                           "quicksilver_worker_restarts_total{model_name=\"coder\",group=\"alpha\"} 0\n"}) {
    EXPECT_THAT(metrics, HasSubstr(line));
  }
  EXPECT_THAT(metrics, ::testing::Not(HasSubstr("quicksilver_engine_step_total{model_name=\"coder\"} 0\n")));
}

TEST(WorkerServesTest, RanksStartedByHandFormAGroupOverTcp) {
  const std::string group = absl::StrCat("--group-address=127.0.0.1:", FreePort());
  WorkerProcess follower({kModel, Ranks(2), "--rank=1", group, "--collective-interface=lo"});
  WorkerProcess leader({kModel, Ranks(2), "--rank=0", group, "--collective-hostname=127.0.0.1"});
  TestCoordinator coordinator(leader.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << leader.process().output() << follower.process().output();
  EXPECT_EQ(CheckHealth(leader.address(), "readiness"), 1);
  leader.process().Kill(SIGTERM);
  EXPECT_EQ(leader.process().Wait(kSoon), 0) << leader.process().output();
  EXPECT_EQ(follower.process().Wait(kSoon), 0) << follower.process().output();
}

// A group that still forms must not look ready anywhere.
TEST(WorkerServesTest, AGroupWithoutAllItsRanksIsNotReady) {
  WorkerProcess leader(
      {kModel, Ranks(2), "--rank=0", absl::StrCat("--group-address=unix-abstract:half-a-group-", getpid())});
  TestCoordinator coordinator(leader.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.Next().has_info()) << leader.process().output();
  for (int beat = 0; beat < 2; ++beat) EXPECT_FALSE(coordinator.Next().heartbeat().ready());
  EXPECT_THAT(leader.Get("/health/ready"), HasSubstr(" 503 "));
  EXPECT_THAT(leader.Get("/health/live"), HasSubstr(" 200 "));
  EXPECT_EQ(CheckHealth(leader.address(), "readiness"), 2);
  EXPECT_EQ(CheckHealth(leader.address(), "liveness"), 1);
  coordinator.Submit(1, 16);
  EXPECT_EQ(coordinator.AwaitEnd(1).end.error_code(), "worker_lost");
  leader.process().Kill(SIGTERM);
  EXPECT_EQ(leader.process().Wait(kSoon), 0) << leader.process().output();
}

TEST(WorkerServesTest, AStreamThatDoesNotBeginWithHelloIsEnded) {
  WorkerProcess worker({kModel});
  TestCoordinator coordinator(worker.address());
  coordinator.Submit(1, 16);
  EXPECT_EQ(coordinator.Next().message_case(), v1::WorkerMessage::MESSAGE_NOT_SET);
  const grpc::Status status = coordinator.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("hello"));
}

TEST(WorkerServesTest, SigtermTellsCoordinatorsAtOnceLetsSequencesFinishAndEndsWithZero) {
  WorkerProcess worker({kModel, Ranks(2)});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  coordinator.Submit(1, 200, "slow");
  while (coordinator.Next().step().updates_size() == 0) {
  }
  worker.process().Kill(SIGTERM);
  // A coordinator that has not heard of it yet.
  ASSERT_TRUE(worker.process().WaitForOutput("draining", kSoon));
  coordinator.Submit(2, 16);
  bool draining = false;
  for (int left = 2; left > 0;) {
    const v1::WorkerMessage message = coordinator.Next();
    ASSERT_NE(message.message_case(), v1::WorkerMessage::MESSAGE_NOT_SET) << worker.process().output();
    if (message.has_heartbeat() && message.heartbeat().draining()) {
      EXPECT_FALSE(message.heartbeat().ready());
      draining = true;
    }
    for (const v1::SequenceUpdate& update : message.step().updates()) {
      if (!update.has_end()) continue;
      EXPECT_EQ(update.end().error_code(), "") << "sequence " << update.sequence_id();
      EXPECT_NE(update.end().reason(), v1::SequenceEnd::REASON_CANCELLED);
      --left;
    }
  }
  EXPECT_TRUE(draining || coordinator.AwaitBeat([](const v1::Heartbeat& beat) { return beat.draining(); }));
  EXPECT_EQ(worker.process().Wait(kSoon), 0) << worker.process().output();
}

TEST(WorkerServesTest, ADrainingGroupIsNotReadyRefusesWhatComesLateAndEndsWhenItsSequencesHaveMoved) {
  WorkerProcess worker({kModel});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  for (uint64_t id = 1; id <= 24; ++id) coordinator.Submit(id, 480, "slow");
  while (coordinator.Next().step().updates_size() == 0) {
  }
  worker.process().Kill(SIGTERM);
  ASSERT_TRUE(worker.process().WaitForOutput("draining", kSoon));
  EXPECT_THAT(worker.Get("/health/ready"), HasSubstr(" 503 "));
  EXPECT_THAT(worker.Get("/health/live"), HasSubstr(" 200 "));
  uint64_t id = 100;
  std::string refusal;
  for (const absl::Time end = absl::Now() + kSoon; refusal.empty() && absl::Now() < end; ++id) {
    coordinator.Submit(id, 1);
    const TestCoordinator::Answer answer = coordinator.AwaitEnd(id);
    ASSERT_FALSE(answer.lost) << worker.process().output();
    refusal = answer.end.error_code();
  }
  EXPECT_EQ(refusal, "shutting_down");
  for (uint64_t moved = 1; moved <= 24; ++moved) coordinator.Cancel(moved);
  EXPECT_EQ(worker.process().Wait(kSoon), 0) << worker.process().output();
}

TEST(WorkerServesTest, ASecondSignalEndsTheProcessAtOnceAndNotWithZero) {
  WorkerProcess worker({kModel, Ranks(2)});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  for (uint64_t id = 1; id <= 64; ++id) coordinator.Submit(id, 400, "slow");
  while (coordinator.Next().step().updates_size() == 0) {
  }
  worker.process().Kill(SIGTERM);
  ASSERT_TRUE(worker.process().WaitForOutput("draining", kSoon));
  worker.process().Kill(SIGTERM);
  EXPECT_EQ(worker.process().Wait(absl::Seconds(2)), 128 + SIGTERM) << worker.process().output();
}

}  // namespace
}  // namespace quicksilver
