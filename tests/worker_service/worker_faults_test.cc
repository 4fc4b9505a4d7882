#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/temp_directory.h"
#include "tests/worker_service/worker_process.h"

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kModel = "--model=models/demo";

class LostRankTest : public ::testing::TestWithParam<int> {};

// Scenario: a rank dies (or hangs) while the group generates.
TEST_P(LostRankTest, TheGroupIsLostWithinFiveSecondsAndFormsAgainWithAHigherEpoch) {
  const int rank = GetParam() / 2;
  const int signal = GetParam() % 2 == 0 ? SIGKILL : SIGSTOP;
  WorkerProcess worker({kModel, "--tensor-parallel-size=2", "--peer-timeout=3"});
  auto before = std::make_unique<TestCoordinator>(worker.address());
  before->Hello();
  const uint64_t epoch = before->Next().info().epoch();
  ASSERT_TRUE(before->AwaitReady()) << worker.process().output();
  before->Submit(1, 24);
  const TestCoordinator::Answer undisturbed = before->AwaitEnd(1);
  before->Submit(2, 400, "slow");
  while (before->Next().step().updates_size() == 0) {
  }
  ASSERT_EQ(worker.Ranks().size(), 2u);
  const absl::Time killed = absl::Now();
  kill(worker.Ranks()[rank], signal);
  // A stopped leader cannot break its own stream before its followers, and then the launcher, have given it up.
  EXPECT_TRUE(before->AwaitEnd(2).lost);
  EXPECT_LT(absl::Now() - killed, absl::Seconds(5));
  before = nullptr;

  TestCoordinator after(worker.address());
  after.Hello();
  EXPECT_GT(after.Next().info().epoch(), epoch);
  ASSERT_TRUE(after.AwaitReady()) << worker.process().output();
  EXPECT_LT(absl::Now() - killed, absl::Seconds(15));
  after.Submit(1, 24);
  EXPECT_EQ(after.AwaitEnd(1).tokens, undisturbed.tokens);
  worker.process().Kill(SIGTERM);
  EXPECT_EQ(worker.process().Wait(absl::Seconds(10)), 0) << worker.process().output();
}

INSTANTIATE_TEST_SUITE_P(Rank, LostRankTest, ::testing::Values(0, 1, 2, 3), [](const auto& kind) {
  return std::string(kind.param % 2 == 0 ? "Killed" : "Stopped") + (kind.param / 2 == 0 ? "Leader" : "Follower");
});

// Also where there is no peer that would notice, and while the engine's thread answers nothing.
TEST(WorkerFaultsTest, AStepThatHangsEndsTheGroupWhichFormsAgain) {
  WorkerProcess worker({kModel, "--failpoints=worker.before_step=hang+40^0"}, QUICKSILVER_WORKER_FAILPOINTS);
  auto before = std::make_unique<TestCoordinator>(worker.address());
  before->Hello();
  const uint64_t epoch = before->Next().info().epoch();
  ASSERT_TRUE(before->AwaitReady()) << worker.process().output();
  before->Submit(1, 200, "slow");
  for (int steps = 0; steps < 40;) steps += before->Next().step().updates_size();
  const absl::Time hung = absl::Now();
  EXPECT_THAT(worker.Get("/health/live"), HasSubstr(" 200 "));
  EXPECT_THAT(worker.Get("/metrics"), HasSubstr("quicksilver_num_requests_running"));
  EXPECT_LT(absl::Now() - hung, absl::Seconds(1)) << "the pages answer while the engine hangs";
  EXPECT_TRUE(before->AwaitEnd(1).lost);
  EXPECT_LT(absl::Now() - hung, absl::Seconds(7)) << "the least deadline of a step and two seconds";
  EXPECT_TRUE(worker.process().WaitForOutput("a step hangs", absl::Seconds(5))) << worker.process().output();
  EXPECT_TRUE(worker.process().WaitForOutput("forming it again\",\"exit_code\":4", absl::Seconds(5)));
  before = nullptr;
  TestCoordinator after(worker.address());
  after.Hello();
  EXPECT_GT(after.Next().info().epoch(), epoch);
  ASSERT_TRUE(after.AwaitReady()) << worker.process().output();
  after.Submit(1, 60, "slow");
  EXPECT_FALSE(after.AwaitEnd(1).lost);
}

// A cgroup that is frozen and a machine that is paused look the same from inside.
TEST(WorkerFaultsTest, ARankWithoutPeersThatWasStoppedGoesOn) {
  WorkerProcess worker({kModel});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  coordinator.Submit(1, 400, "slow");
  while (coordinator.Next().step().updates_size() == 0) {
  }
  ASSERT_EQ(worker.Ranks().size(), 1u);
  const pid_t rank = worker.Ranks()[0];
  kill(rank, SIGSTOP);
  absl::SleepFor(absl::Seconds(6));  // Longer than the least deadline of a step.
  kill(rank, SIGCONT);
  EXPECT_FALSE(coordinator.AwaitEnd(1).lost) << worker.process().output();
  EXPECT_EQ(worker.Ranks(), std::vector<pid_t>{rank});
}

// On a device the first step of a shape may be tried out for longer than a usual step may take.
TEST(WorkerFaultsTest, AStepThatIsPreparedForLongIsNoHang) {
  WorkerProcess worker({kModel, "--failpoints=worker.prepare_step=delay(6s)+40"}, QUICKSILVER_WORKER_FAILPOINTS);
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  coordinator.Submit(1, 200, "slow");
  absl::Duration longest;
  for (absl::Time last = absl::Now(); longest < absl::Seconds(5);) {
    const v1::WorkerMessage message = coordinator.Next();
    ASSERT_NE(message.message_case(), v1::WorkerMessage::MESSAGE_NOT_SET) << worker.process().output();
    if (!message.has_step()) continue;
    longest = std::max(longest, absl::Now() - last);
    last = absl::Now();
  }
}

// Runs the program to its end.
struct Ended {
  int code;
  std::string output;
};
Ended RunToEnd(const std::vector<std::string>& flags, absl::Duration bound = absl::Seconds(10)) {
  WorkerProcess worker(flags);
  const int code = worker.process().Wait(bound);
  return {code, worker.process().output()};
}

TEST(WorkerFaultsTest, AMissingRankIsNamedAndEndsWithFour) {
  const std::string address = absl::StrCat("--group-address=unix-abstract:missing-rank-", getpid());
  const Ended leader = RunToEnd({kModel, "--tensor-parallel-size=2", "--rank=0", address, "--formation-timeout=1"});
  EXPECT_EQ(leader.code, 4) << leader.output;
  EXPECT_THAT(leader.output, HasSubstr("rank 1 of 2 missing after 1s"));
  const Ended follower = RunToEnd({kModel, "--tensor-parallel-size=2", "--rank=1", address, "--formation-timeout=1"});
  EXPECT_EQ(follower.code, 4) << follower.output;
  EXPECT_THAT(follower.output, HasSubstr("rank 0 has not come"));
}

TEST(WorkerFaultsTest, RanksWithDifferentFilesAllEndWithThreeAndNameTheField) {
  const TempDirectory folder;
  const std::filesystem::path copy = std::filesystem::path(folder.path()) / "model";
  std::filesystem::create_directory(copy);
  for (const char* file :
       {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(std::filesystem::path("models/demo") / file, copy / file);
  }
  {
    std::fstream weights(copy / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    weights.seekp(-1, std::ios::end);
    weights.put('\x3d');
  }
  const std::string address = absl::StrCat("--group-address=unix-abstract:other-files-", getpid());
  const std::string name = "--served-model-name=demo";
  const absl::Time start = absl::Now();
  WorkerProcess leader({kModel, name, "--tensor-parallel-size=2", "--rank=0", address});
  WorkerProcess follower({"--model=" + copy.string(), name, "--tensor-parallel-size=2", "--rank=1", address});
  for (WorkerProcess* rank : {&leader, &follower}) {
    EXPECT_EQ(rank->process().Wait(absl::Seconds(5)), 3) << rank->process().output();
    EXPECT_THAT(rank->process().output(), AllOf(HasSubstr("ranks disagree: model digest"), HasSubstr("on rank 1")));
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST(WorkerFaultsTest, APortInUseIsNamedAndEndsWithFive) {
  WorkerProcess first({kModel});
  TestCoordinator coordinator(first.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady());
  const Ended second = RunToEnd({kModel, "--tensor-parallel-size=2", "--listen=" + first.address()});
  EXPECT_EQ(second.code, 2) << "--listen is given twice: " << second.output;
  ChildProcess third({QUICKSILVER_WORKER, kModel, "--tensor-parallel-size=2", "--listen=" + first.address(),
                      absl::StrCat("--metrics-listen=127.0.0.1:", FreePort())});
  EXPECT_EQ(third.Wait(absl::Seconds(5)), 5) << third.output();
  EXPECT_THAT(third.output(), AllOf(HasSubstr("--listen"), HasSubstr(first.address())));
  ChildProcess fourth({QUICKSILVER_WORKER, kModel, absl::StrCat("--listen=127.0.0.1:", FreePort()),
                       "--metrics-listen=" + first.address()});
  EXPECT_EQ(fourth.Wait(absl::Seconds(5)), 5) << fourth.output();
  EXPECT_THAT(fourth.output(), HasSubstr(first.address()));
}

TEST(WorkerFaultsTest, WrongSettingsEndWithTwoInASecondAndNameFlagValueAndBound) {
  struct Case {
    std::vector<std::string> flags;
    std::string flag, value;
  };
  for (const Case& wrong :
       std::vector<Case>{{{kModel, "--tensor-parallel-size=0"}, "--tensor-parallel-size", "0"},
                         {{kModel, "--tensor-parallel-size=65"}, "--tensor-parallel-size", "64"},
                         {{kModel, "--dtype=f8"}, "--dtype", "f8"},
                         {{kModel, "--device=tpu"}, "--device", "tpu"},
                         {{kModel, "--device=cpu", "--quantization=fp8"}, "--quantization", "fp8"},
                         {{kModel, "--device=cpu", "--deterministic=off"}, "--deterministic", "off"},
                         {{kModel, "--page-size=5"}, "--page-size", "5"},
                         {{kModel, "--step-rows-max=1"}, "--step-rows-max", "1"},
                         {{kModel, "--kv-pages=4", "--kv-tokens=64"}, "--kv-pages", "64"},
                         {{kModel, "--rank=2", "--tensor-parallel-size=2", "--group-address=x:1"}, "--rank", "2"},
                         {{kModel, "--rank=1", "--tensor-parallel-size=2"}, "--group-address", ""},
                         {{kModel, "--group-address=x:1"}, "--group-address", "x:1"},
                         {{kModel, "--no-such-flag=1"}, "--no-such-flag", ""},
                         {{}, "--model", ""}}) {
    const Ended ended = RunToEnd(wrong.flags, absl::Seconds(3));
    EXPECT_EQ(ended.code, 2) << wrong.flag << ": " << ended.output;
    EXPECT_THAT(ended.output, AllOf(HasSubstr(wrong.flag), HasSubstr(wrong.value)));
  }
}

TEST(WorkerFaultsTest, ADeviceThatIsNotThereEndsWithThreeAndIsNamed) {
  const Ended none = RunToEnd({kModel, "--device=cuda", "--devices=999"});
  EXPECT_EQ(none.code, 3) << none.output;
  EXPECT_THAT(none.output, AllOf(HasSubstr("CUDA device 999"), HasSubstr("--device=cpu")));
}

TEST(WorkerFaultsTest, FilesThatCannotServeEndWithThreeAndAreNamed) {
  const Ended none = RunToEnd({"--model=/no/such/model"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.output, HasSubstr("/no/such/model"));
  const Ended ranks = RunToEnd({kModel, "--tensor-parallel-size=3"});
  EXPECT_EQ(ranks.code, 3);
  EXPECT_THAT(ranks.output, HasSubstr("3"));
}

TEST(WorkerFaultsTest, ADrainEndsInBoundedTimeAlsoWhenARankHangs) {
  WorkerProcess worker({kModel, "--tensor-parallel-size=2", "--peer-timeout=600", "--drain-timeout=0.5"});
  TestCoordinator coordinator(worker.address());
  coordinator.Hello();
  ASSERT_TRUE(coordinator.AwaitReady()) << worker.process().output();
  kill(worker.Ranks()[0], SIGSTOP);
  worker.process().Kill(SIGTERM);
  EXPECT_EQ(worker.process().Wait(absl::Seconds(9)), 4) << worker.process().output();
}

TEST(WorkerFaultsTest, RanksDoNotOutliveTheirLauncher) {
  std::vector<pid_t> ranks;
  {
    WorkerProcess worker({kModel, "--tensor-parallel-size=2"});
    TestCoordinator coordinator(worker.address());
    coordinator.Hello();
    ASSERT_TRUE(coordinator.AwaitReady());
    ranks = worker.Ranks();
    ASSERT_EQ(ranks.size(), 2u);
    worker.process().Kill(SIGKILL);
    EXPECT_TRUE(coordinator.AwaitEnd(1).lost);
  }
  // Their new parent may take a moment to reap them.
  for (const pid_t pid : ranks) {
    std::string state = "?";
    for (int i = 0; i < 100 && state != "Z" && state != "gone"; ++i) {
      std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
      std::string number, name;
      if (!(stat >> number >> name >> state)) state = "gone";
      absl::SleepFor(absl::Milliseconds(20));
    }
    EXPECT_TRUE(state == "Z" || state == "gone") << state;
  }
}

}  // namespace
}  // namespace quicksilver
