#include "worker/collectives/cuda/ipc_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/all_reduce.h"
#include "tests/collectives/communicator_suite.h"
#include "tests/collectives/cuda/cuda_rank_memory.h"
#include "tests/collectives/cuda/device_or_twin.h"
#include "worker/collectives/rank_order_sum.h"

namespace quicksilver {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(20);

absl::StatusOr<RankMember> Make(int rank, int ranks, RendezvousStore& store, absl::Duration timeout,
                                std::optional<size_t> two_shot_bytes_min = std::nullopt, int devices = 1) {
  if (cudaSetDevice(rank % devices) != cudaSuccess) return absl::InternalError("cudaSetDevice");
  auto memory = std::make_unique<CudaRankMemory>();
  IpcOptions options;
  options.rank = rank;
  options.size = ranks;
  options.timeout = timeout;
  options.two_shot_bytes_min = two_shot_bytes_min;
  auto group = MakeIpcCommunicator(options, memory->stream(), store, absl::Seconds(20));
  if (!group.ok()) return group.status();
  return RankMember{std::move(memory), *std::move(group)};
}

CommunicatorKind Kind(const char* name, int ranks, std::optional<size_t> two_shot_bytes_min, int devices = 1) {
  return {name, ranks,
          [two_shot_bytes_min, devices](int rank, int size, RendezvousStore& store) {
            return Make(rank, size, store, kTimeout, two_shot_bytes_min, devices);
          },
          [devices] { return PrepareDevices(devices); }};
}

INSTANTIATE_TEST_SUITE_P(Ipc, CommunicatorTest,
                         ::testing::Values(Kind("one", 1, std::nullopt), Kind("two", 2, std::nullopt),
                                           Kind("two_in_two_shots", 2, 0), Kind("three_in_one_shot", 3, SIZE_MAX),
                                           Kind("three_in_two_shots", 3, 0), Kind("four", 4, std::nullopt),
                                           Kind("two_on_two_devices", 2, std::nullopt, 2),
                                           Kind("four_on_four_devices", 4, std::nullopt, 4)),
                         [](const auto& kind) { return kind.param.name; });

class IpcCommunicatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = PrepareDevices(1); !missing.empty()) GTEST_SKIP() << missing;
  }

  /// Forms a group of two and runs `body` on rank 0 while rank 1 does nothing until `body` is done.
  void AgainstAnIdlePeer(absl::Duration timeout, const std::function<void(Communicator&, RankMemory&)>& body) {
    MemoryRendezvous store;
    std::atomic<bool> done = false;
    RunRanks(2, [&](int rank) {
      auto member = Make(rank, 2, store, timeout);
      ASSERT_TRUE(member.ok()) << member.status();
      if (rank == 0) body(*member->group, *member->memory);
      if (rank == 0) done = true;
      while (!done) absl::SleepFor(absl::Milliseconds(5));
    });
  }
  static absl::Status Reduce(Communicator& group, RankMemory& memory) {
    const RankArray<float> x(memory, {1.0f});
    group.AllReduceSum(x.row(DType::kF32));
    return group.Synchronize();
  }
};

TEST_F(IpcCommunicatorTest, AbortFromAnotherThreadEndsAWaitAtOnce) {
  AgainstAnIdlePeer(absl::Seconds(30), [&](Communicator& group, RankMemory& memory) {
    std::thread other([&group] {
      absl::SleepFor(absl::Milliseconds(100));
      group.Abort();
    });
    const absl::Time start = absl::Now();
    const absl::Status status = Reduce(group, memory);
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("aborted"));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    other.join();
  });
}

TEST_F(IpcCommunicatorTest, ASilentPeerIsLostAfterTheTimeoutAndStaysLost) {
  AgainstAnIdlePeer(absl::Milliseconds(300), [&](Communicator& group, RankMemory& memory) {
    const absl::Time start = absl::Now();
    const absl::Status status = Reduce(group, memory);
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 lost rank 1: silent for 300ms"));
    EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    EXPECT_EQ(Reduce(group, memory), status);
  });
}

TEST_F(IpcCommunicatorTest, SeveralSilentPeersAreOneLoss) {
  MemoryRendezvous store;
  RunRanks(3, [&](int rank) {
    auto member = Make(rank, 3, store, absl::Milliseconds(300));
    ASSERT_TRUE(member.ok()) << member.status();
    if (rank == 0) {
      const absl::Status status = Reduce(*member->group, *member->memory);
      EXPECT_THAT(std::string(status.message()), ::testing::ContainsRegex("rank 0 lost rank [12]: silent for 300ms"));
      ASSERT_TRUE(store.Put("done", "").ok());
    }
    ASSERT_TRUE(store.Get({"done"}, absl::Seconds(20)).ok());
  });
}

// A step has a hundred collectives in flight: they must not wait for the dead one after the other.
TEST_F(IpcCommunicatorTest, AfterTheFirstLossNothingWaitsAgain) {
  AgainstAnIdlePeer(absl::Milliseconds(300), [&](Communicator& group, RankMemory& memory) {
    const RankArray<float> x(memory, std::vector<float>(1000));
    const absl::Time start = absl::Now();
    for (int i = 0; i < 50; ++i) group.AllReduceSum(x.row(DType::kF32));
    EXPECT_TRUE(absl::IsUnavailable(group.Synchronize()));
    EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  });
}

// The peers may still be about to finish what this rank gave up.
TEST_F(IpcCommunicatorTest, ARankThatIsLostSendsNothingMore) {
  MemoryRendezvous store;
  RunRanks(2, [&](int rank) {
    auto member = Make(rank, 2, store, absl::Milliseconds(300));
    ASSERT_TRUE(member.ok()) << member.status();
    const RankArray<float> x(*member->memory, {1.0f + static_cast<float>(rank)}), later(*member->memory, {100.0f});
    if (rank == 0) {
      member->group->AllReduceSum(x.row(DType::kF32));
      member->group->AllReduceSum(later.row(DType::kF32));
      EXPECT_TRUE(absl::IsUnavailable(member->group->Synchronize()));
      ASSERT_TRUE(store.Put("lost", "").ok());
      ASSERT_TRUE(store.Get({"done"}, absl::Seconds(20)).ok());
    } else {
      ASSERT_TRUE(store.Get({"lost"}, absl::Seconds(20)).ok());
      member->group->AllReduceSum(x.row(DType::kF32));
      EXPECT_TRUE(member->group->Synchronize().ok());
      EXPECT_EQ(x.Get()[0], 3.0f);
      ASSERT_TRUE(store.Put("done", "").ok());
    }
  });
}

TEST_F(IpcCommunicatorTest, RanksThatDisagreeAboutASizeOrAnOperationBothFail) {
  for (const bool gather : {false, true}) {
    MemoryRendezvous store;
    RunRanks(2, [&](int rank) {
      auto member = Make(rank, 2, store, absl::Seconds(2));
      ASSERT_TRUE(member.ok()) << member.status();
      const RankArray<float> x(*member->memory, std::vector<float>(16, 1.0f));
      if (gather && rank == 1) {
        member->group->AllGather(x.data(), x.data() + 8, 16);
      } else {
        const int64_t cols = rank == 0 || gather ? 4 : 8;
        member->group->AllReduceSum({x.data(), 1, cols, cols, DType::kF32});
      }
      const absl::Status status = member->group->Synchronize();
      EXPECT_TRUE(absl::IsInternal(status)) << status;
      EXPECT_THAT(std::string(status.message()), AnyOf(HasSubstr("of 16 bytes"), HasSubstr("of 32 bytes")));
      // Both have to have seen it before a region goes.
      ASSERT_TRUE(store.Put(absl::StrCat("seen/", rank), "").ok());
      ASSERT_TRUE(store.Get({"seen/0", "seen/1"}, absl::Seconds(20)).ok());
    });
  }
}

TEST_F(IpcCommunicatorTest, AMissingRankEndsTheFormation) {
  MemoryRendezvous store;
  CudaRankMemory memory;
  IpcOptions options;
  options.size = 2;
  const auto group = MakeIpcCommunicator(options, memory.stream(), store, absl::Milliseconds(200));
  EXPECT_TRUE(absl::IsDeadlineExceeded(group.status())) << group.status();
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("ipc/region/1"));
}

TEST_F(IpcCommunicatorTest, MoreRanksThanTheKernelsKnowAreRefused) {
  MemoryRendezvous store;
  CudaRankMemory memory;
  IpcOptions options;
  options.size = kExchangeRanksMax + 1;
  const auto group = MakeIpcCommunicator(options, memory.stream(), store, absl::Seconds(1));
  EXPECT_TRUE(absl::IsFailedPrecondition(group.status())) << group.status();
}

// What a step is: recorded once, replayed with other contents, other operations in between.
TEST_F(IpcCommunicatorTest, CapturedOperationsGiveTheSameBitsAtEveryReplay) {
  constexpr size_t kElements = 20011;
  MemoryRendezvous store;
  RunRanks(3, [&](int rank) {
    auto member = Make(rank, 3, store, kTimeout, 64 << 10);
    ASSERT_TRUE(member.ok()) << member.status();
    auto& memory = static_cast<CudaRankMemory&>(*member->memory);
    Communicator& group = *member->group;
    const RankArray<float> large(memory, std::vector<float>(kElements)), small(memory, std::vector<float>(17));
    const RankArray<float> gathered(memory, std::vector<float>(3 * 17));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(memory.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    group.AllReduceSum(large.row(DType::kF32));
    group.AllGather(small.data(), gathered.data(), 17 * sizeof(float));
    group.AllReduceSum(small.row(DType::kF32));
    ASSERT_EQ(cudaStreamEndCapture(memory.stream(), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (uint32_t replay = 0; replay < 5; ++replay) {
      large.Set(PartOf(rank, kElements, 20 + replay));
      small.Set(PartOf(rank, 17, 40 + replay));
      ASSERT_EQ(cudaGraphLaunch(exec, memory.stream()), cudaSuccess);
      if (replay % 2 == 0) {
        EXPECT_TRUE(Reduce(group, memory).ok());
      }
      ASSERT_TRUE(group.Synchronize().ok());
      EXPECT_EQ(large.Get(), SumOfParts(3, kElements, 20 + replay)) << replay;
      EXPECT_EQ(small.Get(), SumOfParts(3, 17, 40 + replay)) << replay;
      const std::vector<float> all = gathered.Get();
      for (int other = 0; other < 3; ++other) {
        EXPECT_EQ(std::vector<float>(all.begin() + 17 * other, all.begin() + 17 * (other + 1)),
                  PartOf(other, 17, 40 + replay));
      }
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    Reduce(group, memory).IgnoreError();
  });
}

TEST_F(IpcCommunicatorTest, AReplayThatAPeerMissesEndsWithinTheTimeout) {
  AgainstAnIdlePeer(absl::Milliseconds(300), [&](Communicator& group, RankMemory& rank_memory) {
    auto& memory = static_cast<CudaRankMemory&>(rank_memory);
    const RankArray<float> x(memory, std::vector<float>(64));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(memory.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    group.AllReduceSum(x.row(DType::kF32));
    ASSERT_EQ(cudaStreamEndCapture(memory.stream(), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    const absl::Time start = absl::Now();
    EXPECT_TRUE(group.status().ok());
    ASSERT_EQ(cudaGraphLaunch(exec, memory.stream()), cudaSuccess);
    // Nothing that the launch leaves behind may be trusted, and the host may look before it waits.
    EXPECT_TRUE(absl::IsUnavailable(group.status())) << "with a twin that works at once";
    EXPECT_TRUE(absl::IsUnavailable(group.Synchronize()));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  });
}

#ifdef QUICKSILVER_CUDA_TWIN
// Threads and blocks run in another order at every seed: a missing barrier shows.
TEST_F(IpcCommunicatorTest, TheOrderInWhichThreadsRunDoesNotMatter) {
  for (const uint64_t seed : {1, 2, 3}) {
    cuda_twin::TwinDevice().SetThreadOrderSeed(seed);
    MemoryRendezvous store;
    RunRanks(3, [&](int rank) {
      auto member = Make(rank, 3, store, kTimeout, 100 << 10);
      ASSERT_TRUE(member.ok()) << member.status();
      for (const size_t elements : {size_t{5}, size_t{20000}, size_t{60001}}) {
        const RankArray<float> x(*member->memory, PartOf(rank, elements, 3));
        const RankArray<float> all(*member->memory, std::vector<float>(3 * elements));
        member->group->AllGather(x.data(), all.data(), elements * sizeof(float));
        member->group->AllReduceSum(x.row(DType::kF32));
        ASSERT_TRUE(member->group->Synchronize().ok());
        EXPECT_EQ(x.Get(), SumOfParts(3, elements, 3)) << "seed " << seed;
        const std::vector<float> gathered = all.Get(), part = PartOf(2, elements, 3);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), gathered.begin() + static_cast<std::ptrdiff_t>(2 * elements)));
      }
    });
  }
  cuda_twin::TwinDevice().SetThreadOrderSeed(0);
}
#endif

#ifdef QUICKSILVER_CUDA_TWIN
// In a process of its own: nothing on the device works after this.
[[noreturn]] void FailAKernel() {
  PrepareDevices(1);
  MemoryRendezvous store;
  auto member = Make(0, 1, store, kTimeout);
  CudaRankMemory& memory = static_cast<CudaRankMemory&>(*member->memory);
  const RankArray<float> parts(memory, std::vector<float>(8)), sum(memory, std::vector<float>(4));
  cuda_twin::TwinDevice().FailCall("kernel", 1, cudaErrorIllegalAddress);
  EXPECT_EQ(LaunchRankOrderSum(parts.data(), 2, 4, DType::kF32, sum.data(), memory.stream()), cudaSuccess);
  const absl::Status status = member->group->Synchronize();
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  _exit(absl::IsUnavailable(status) ? 4 : 1);
}

TEST(IpcCommunicatorDeathTest, AStickyErrorOfAKernelIsTheFailureOfTheGroupAndNamesItself) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(FailAKernel(), ::testing::ExitedWithCode(4), "cudaErrorIllegalAddress, 700.*only a new process recovers");
}
#endif

// The sum that NCCL's gather is followed by.
TEST_F(IpcCommunicatorTest, TheSumKernelAddsLikeTheHost) {
  CudaRankMemory memory;
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const size_t elements : {size_t{1}, size_t{511}, size_t{100003}}) {
      std::vector<uint8_t> parts;
      std::vector<const void*> pointers;
      const size_t bytes = elements * ElementBytes(dtype);
      for (int rank = 0; rank < 5; ++rank) {
        const std::vector<float> part = PartOf(rank, elements, 9);
        const std::vector<uint16_t> rounded = AsBf16(part);
        const auto* from = dtype == DType::kF32 ? reinterpret_cast<const uint8_t*>(part.data())
                                                : reinterpret_cast<const uint8_t*>(rounded.data());
        parts.insert(parts.end(), from, from + bytes);
      }
      for (size_t rank = 0; rank < 5; ++rank) pointers.push_back(parts.data() + rank * bytes);
      std::vector<uint8_t> expected(bytes);
      SumInRankOrder(pointers.data(), 5, static_cast<int64_t>(elements), dtype, expected.data());
      const RankArray<uint8_t> in(memory, parts), out(memory, std::vector<uint8_t>(bytes));
      ASSERT_EQ(LaunchRankOrderSum(in.data(), 5, static_cast<int64_t>(elements), dtype, out.data(), memory.stream()),
                cudaSuccess);
      EXPECT_EQ(out.Get(), expected) << elements;
    }
  }
}

}  // namespace
}  // namespace quicksilver
