#include "worker/collectives/cuda/nccl_communicator.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "tests/collectives/communicator_suite.h"
#include "tests/collectives/cuda/cuda_rank_memory.h"
#include "tests/support/cuda_twin/twin_device.h"
#include "tests/support/fake_nccl/fake_nccl.h"

// The state machine of the NCCL communicator against a stand-in for NCCL on the CUDA twin: what it does when NCCL is in
// progress, fails, or hangs. The collectives of the real NCCL have never run under this project's tests.

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using ::testing::HasSubstr;

FakeNcclControl& Fake() {
  static FakeNcclControl* control = [] {
    void* handle = dlopen(FAKE_NCCL, RTLD_NOW);
    return reinterpret_cast<FakeNcclControl* (*)()>(dlsym(handle, "FakeNccl"))();
  }();
  return *control;
}

NcclOptions OptionsFor(int rank, int ranks) {
  NcclOptions options;
  options.rank = rank;
  options.size = ranks;
  options.library = FAKE_NCCL;
  options.init_timeout = absl::Seconds(20);
  options.step_timeout = absl::Seconds(20);
  options.piece_bytes = 64 << 10;  // So that the suite's sizes take several.
  return options;
}

absl::StatusOr<RankMember> Make(const NcclOptions& options, RendezvousStore& store) {
  auto memory = std::make_unique<CudaRankMemory>();
  auto control =
      MakeGlooControlChannel(GlooOptionsFor(options.rank, options.size, absl::Seconds(20)), store, absl::Seconds(20));
  if (!control.ok()) return control.status();
  auto group = MakeNcclCommunicator(options, memory->stream(), **control);
  // Nobody hangs up before the others have heard.
  EXPECT_TRUE((*control)->Barrier(absl::Seconds(20)).ok());
  if (!group.ok()) return group.status();
  return RankMember{std::move(memory), *std::move(group)};
}

absl::StatusOr<RankMember> MakeInRankOrder(int rank, int ranks, RendezvousStore& store) {
  return Make(OptionsFor(rank, ranks), store);
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorTest,
                         ::testing::Values(CommunicatorKind{"one", 1, MakeInRankOrder},
                                           CommunicatorKind{"two", 2, MakeInRankOrder},
                                           CommunicatorKind{"three", 3, MakeInRankOrder}),
                         [](const auto& kind) { return kind.param.name; });

class NcclCommunicatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    Fake().Reset();
    TwinDevice().Reset();
  }
  void TearDown() override {
    Fake().Reset();
    TwinDevice().Reset();
  }

  static RankMember MakeAlone(const NcclOptions& options) {
    MemoryRendezvous store;
    const auto control = MakeLocalControlChannel();
    auto memory = std::make_unique<CudaRankMemory>();
    auto group = MakeNcclCommunicator(options, memory->stream(), *control);
    EXPECT_TRUE(group.ok()) << group.status();
    return {std::move(memory), *std::move(group)};
  }
  static void Gather(Communicator& group, RankMemory& memory) {
    const RankArray<int> x(memory, {7});
    group.AllGather(x.data(), x.data(), sizeof(int));
  }
};

TEST_F(NcclCommunicatorTest, TheFastSumIsASumAndSaysThatItIsNotDeterministic) {
  MemoryRendezvous store;
  RunRanks(3, [&](int rank) {
    NcclOptions options = OptionsFor(rank, 3);
    options.rank_order = false;
    auto member = Make(options, store);
    ASSERT_TRUE(member.ok()) << member.status();
    EXPECT_FALSE(member->group->deterministic());
    const RankArray<float> x(*member->memory, PartOf(rank, 5000, 1));
    const RankArray<float> whole(*member->memory, std::vector<float>(100, static_cast<float>(rank)));
    member->group->AllReduceSum(x.row(DType::kF32));
    member->group->AllReduceSum(whole.row(DType::kF32));
    ASSERT_TRUE(member->group->Synchronize().ok());
    EXPECT_EQ(whole.Get(), std::vector<float>(100, 3.0f));
    EXPECT_NE(x.Get(), SumOfParts(3, 5000, 1)) << "the stand-in adds from the last rank on";
    EXPECT_THAT(x.Get(), ::testing::Pointwise(::testing::FloatNear(16.0f), SumOfParts(3, 5000, 1)));
  });
}

TEST_F(NcclCommunicatorTest, CallsThatAreInProgressAreWaitedFor) {
  Fake().init_polls = 50;
  Fake().enqueue_polls = 20;
  RankMember rank = MakeAlone(OptionsFor(0, 1));
  Gather(*rank.group, *rank.memory);
  Gather(*rank.group, *rank.memory);  // The stand-in refuses this one while the first is in progress.
  EXPECT_TRUE(rank.group->Synchronize().ok());
  EXPECT_FALSE(rank.group->repeats());
}

TEST_F(NcclCommunicatorTest, AGroupThatDoesNotFormInTimeIsAborted) {
  Fake().init_polls = -1;
  NcclOptions options = OptionsFor(0, 1);
  options.init_timeout = absl::Milliseconds(200);
  CudaRankMemory memory;
  const absl::Time start = absl::Now();
  const auto group = MakeNcclCommunicator(options, memory.stream(), *MakeLocalControlChannel());
  EXPECT_TRUE(absl::IsUnavailable(group.status())) << group.status();
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("ncclCommInitRankConfig has not finished within 200ms"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  EXPECT_EQ(Fake().aborts, 1);
}

TEST_F(NcclCommunicatorTest, AMissingRankEndsTheFormationOfTheOther) {
  CudaRankMemory memory;
  NcclOptions options = OptionsFor(0, 2);
  options.init_timeout = absl::Milliseconds(200);
  const auto group = MakeNcclCommunicator(options, memory.stream(), *MakeLocalControlChannel());
  EXPECT_TRUE(absl::IsUnavailable(group.status())) << group.status();
}

TEST_F(NcclCommunicatorTest, WithoutAnIdTheLeaderTellsTheOthersWhy) {
  Fake().unique_id_result = 2;  // ncclSystemError
  MemoryRendezvous store;
  RunRanks(2, [&](int rank) {
    const auto member = Make(OptionsFor(rank, 2), store);
    EXPECT_TRUE(absl::IsUnavailable(member.status())) << member.status();
    EXPECT_THAT(std::string(member.status().message()), HasSubstr("ncclGetUniqueId: unhandled system error"));
  });
}

TEST_F(NcclCommunicatorTest, AnAsynchronousErrorIsFoundAndAborts) {
  RankMember rank = MakeAlone(OptionsFor(0, 1));
  Fake().async_result = 6;  // ncclRemoteError
  Gather(*rank.group, *rank.memory);
  const absl::Status status = rank.group->Synchronize();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("remote process exited"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the stand-in has no more to say"));
  EXPECT_EQ(Fake().aborts, 1);
  Fake().async_result = 0;
  Gather(*rank.group, *rank.memory);
  EXPECT_EQ(rank.group->Synchronize(), status) << "the first failure sticks";
  EXPECT_EQ(Fake().aborts, 1);
}

TEST_F(NcclCommunicatorTest, ACallThatStaysInProgressIsGivenUp) {
  NcclOptions options = OptionsFor(0, 1);
  options.step_timeout = absl::Milliseconds(200);
  RankMember rank = MakeAlone(options);
  Fake().enqueue_polls = -1;
  Gather(*rank.group, *rank.memory);
  const absl::Status status = rank.group->Synchronize();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("ncclAllGather has not finished within 200ms"));
  EXPECT_EQ(Fake().aborts, 1);
}

TEST_F(NcclCommunicatorTest, AbortFromAnotherThreadEndsAWait) {
  RankMember rank = MakeAlone(OptionsFor(0, 1));
  Fake().enqueue_polls = -1;
  std::thread other([&] {
    absl::SleepFor(absl::Milliseconds(100));
    rank.group->Abort();
  });
  const absl::Time start = absl::Now();
  Gather(*rank.group, *rank.memory);
  EXPECT_TRUE(absl::IsUnavailable(rank.group->Synchronize()));
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  other.join();
}

// A kernel that never ends, in a stream whose work a thread of its own does.
class Hang {
 public:
  explicit Hang(cudaStream_t stream) {
    released_ = false;
    TwinDevice().SetDeferred(true);
    worker_ = std::thread([stream] {
      EXPECT_EQ(cudaLaunchHostFunc(
                    stream,
                    [](void*) {
                      running_ = true;
                      while (!released_) absl::SleepFor(absl::Milliseconds(1));
                    },
                    nullptr),
                cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    });
    while (!running_) absl::SleepFor(absl::Milliseconds(1));
  }
  ~Hang() {
    released_ = true;
    worker_.join();
    running_ = false;
  }
  static void End() { released_ = true; }

 private:
  static inline std::atomic<bool> running_ = false, released_ = false;
  std::thread worker_;
};

TEST_F(NcclCommunicatorTest, WorkThatHangsOnTheDeviceIsAbortedAtTheDeadline) {
  NcclOptions options = OptionsFor(0, 1);
  options.step_timeout = absl::Milliseconds(300);
  RankMember rank = MakeAlone(options);
  Hang hang(static_cast<CudaRankMemory&>(*rank.memory).stream());
  Fake().on_abort = &Hang::End;
  const absl::Time start = absl::Now();
  const absl::Status status = rank.group->Synchronize();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the device has not finished its work within 300ms"));
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(300) + options.abort_budget);
  EXPECT_EQ(Fake().aborts, 1);
}

TEST_F(NcclCommunicatorTest, AnErrorOfAPeerEndsTheWaitForWorkThatHangs) {
  RankMember rank = MakeAlone(OptionsFor(0, 1));
  Hang hang(static_cast<CudaRankMemory&>(*rank.memory).stream());
  Fake().on_abort = &Hang::End;
  Fake().async_result = 6;
  const absl::Time start = absl::Now();
  EXPECT_THAT(std::string(rank.group->Synchronize().message()), HasSubstr("remote process exited"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
}

TEST_F(NcclCommunicatorTest, ProgramsAreReleasedOnceAndBeforeTheAbort) {
  RankMember rank = MakeAlone(OptionsFor(0, 1));
  int released = 0;
  rank.group->BeforeAbort([&] {
    ++released;
    EXPECT_EQ(Fake().revokes, 1) << "what is in flight has to end first";
    EXPECT_EQ(Fake().aborts, 0);
  });
  rank.group->Abort();
  rank.group->Abort();
  rank.group.reset();
  EXPECT_EQ(released, 1);
  EXPECT_EQ(Fake().aborts, 1);
}

TEST_F(NcclCommunicatorTest, AReleaseThatIsTakenBackIsNotCalled) {
  RankMember rank = MakeAlone(OptionsFor(0, 1));
  rank.group->BeforeAbort([] { FAIL(); });
  rank.group->BeforeAbort(nullptr);
  rank.group.reset();
  EXPECT_EQ(Fake().aborts, 1);
}

TEST_F(NcclCommunicatorTest, CapturedOperationsRunAtEveryReplay) {
  MemoryRendezvous store;
  RunRanks(2, [&](int rank) {
    auto member = MakeInRankOrder(rank, 2, store);
    ASSERT_TRUE(member.ok()) << member.status();
    const cudaStream_t stream = static_cast<CudaRankMemory&>(*member->memory).stream();
    const RankArray<float> x(*member->memory, std::vector<float>(40000));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    member->group->AllReduceSum(x.row(DType::kF32));
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (uint32_t replay = 0; replay < 3; ++replay) {
      x.Set(PartOf(rank, 40000, replay));
      ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
      ASSERT_TRUE(member->group->Synchronize().ok());
      EXPECT_EQ(x.Get(), SumOfParts(2, 40000, replay));
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  });
}

using NcclCommunicatorDeathTest = NcclCommunicatorTest;

TEST_F(NcclCommunicatorDeathTest, AnAbortThatHangsEndsTheProcessWithItsReason) {
  EXPECT_EXIT(
      {
        NcclOptions options = OptionsFor(0, 1);
        options.abort_budget = absl::Milliseconds(300);
        RankMember rank = MakeAlone(options);
        Fake().abort_hangs = true;
        Fake().async_result = 6;
        Gather(*rank.group, *rank.memory);
        rank.group->Synchronize().IgnoreError();
        _exit(0);
      },
      ::testing::ExitedWithCode(4), "abort of NCCL .*remote process exited.*exit_code\":4");
}

TEST_F(NcclCommunicatorDeathTest, WorkThatOutlivesTheAbortEndsTheProcess) {
  EXPECT_EXIT(
      {
        NcclOptions options = OptionsFor(0, 1);
        options.step_timeout = absl::Milliseconds(100);
        options.abort_budget = absl::Milliseconds(300);
        RankMember rank = MakeAlone(options);
        Hang hang(static_cast<CudaRankMemory&>(*rank.memory).stream());
        rank.group->Synchronize().IgnoreError();
        _exit(0);
      },
      ::testing::ExitedWithCode(4), "abort of NCCL .*the device has not finished its work within 100ms");
}

TEST_F(NcclCommunicatorDeathTest, AReleaseThatHangsEndsTheProcess) {
  EXPECT_EXIT(
      {
        NcclOptions options = OptionsFor(0, 1);
        options.abort_budget = absl::Milliseconds(300);
        RankMember rank = MakeAlone(options);
        rank.group->BeforeAbort([] { absl::SleepFor(absl::InfiniteDuration()); });
        rank.group->Abort();
        _exit(0);
      },
      ::testing::ExitedWithCode(4), "abort of NCCL .aborted.");
}

TEST_F(NcclCommunicatorDeathTest, AStickyErrorOfTheDeviceLeavesThroughTheStatus) {
  EXPECT_EXIT(
      {
        RankMember rank = MakeAlone(OptionsFor(0, 1));
        TwinDevice().FailCall("cudaEventQuery", 1, cudaErrorIllegalAddress);
        const absl::Status status = rank.group->Synchronize();
        std::fprintf(stderr, "%s\n", status.ToString().c_str());
        _exit(absl::IsUnavailable(status) ? 4 : 1);
      },
      ::testing::ExitedWithCode(4), "cudaErrorIllegalAddress, 700.*only a new process recovers");
}

}  // namespace
}  // namespace quicksilver
