#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/collectives/communicator_suite.h"
#include "tests/collectives/cuda/cuda_rank_memory.h"
#include "tests/collectives/cuda/device_or_twin.h"
#include "worker/collectives/cuda/nccl_communicator.h"

// The real NCCL on real devices: one rank on one, more where there are more, since NCCL takes one rank a device.

namespace quicksilver {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(30);

// REAL_NCCL: where the build found it; else where the loader does.
std::string Missing(int devices) {
  std::string missing = PrepareDevices(devices);
  const char* path = *REAL_NCCL != '\0' ? REAL_NCCL : "libnccl.so.2";
  if (missing.empty() && dlopen(path, RTLD_NOW) == nullptr) missing = absl::StrCat("no NCCL: ", dlerror());
  return missing;
}

absl::StatusOr<RankMember> Make(int rank, int ranks, RendezvousStore& store, bool rank_order = true) {
  if (cudaSetDevice(rank) != cudaSuccess) return absl::InternalError("cudaSetDevice");
  auto memory = std::make_unique<CudaRankMemory>();
  auto control = MakeGlooControlChannel(GlooOptionsFor(rank, ranks, kTimeout), store, kTimeout);
  if (!control.ok()) return control.status();
  NcclOptions options;
  options.rank = rank;
  options.size = ranks;
  options.library = REAL_NCCL;
  options.rank_order = rank_order;
  options.init_timeout = options.step_timeout = kTimeout;
  auto group = MakeNcclCommunicator(options, memory->stream(), **control);
  if (!group.ok()) return group.status();
  return RankMember{std::move(memory), *std::move(group)};
}

CommunicatorKind Kind(const char* name, int ranks) {
  return {name, ranks, [](int rank, int size, RendezvousStore& store) { return Make(rank, size, store); },
          [ranks] { return Missing(ranks); }};
}

INSTANTIATE_TEST_SUITE_P(RealNccl, CommunicatorTest, ::testing::Values(Kind("one", 1), Kind("two", 2), Kind("four", 4)),
                         [](const auto& kind) { return kind.param.name; });

class NcclGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = Missing(1); !missing.empty()) GTEST_SKIP() << missing;
  }
};

TEST_F(NcclGpuTest, CapturedOperationsRunAtEveryReplayAndAreReleasedBeforeTheAbort) {
  for (const bool rank_order : {true, false}) {
    MemoryRendezvous store;
    auto member = Make(0, 1, store, rank_order);
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
      x.Set(PartOf(0, 40000, replay));
      ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
      ASSERT_TRUE(member->group->Synchronize().ok());
      EXPECT_EQ(x.Get(), PartOf(0, 40000, replay));
    }
    bool released = false;
    member->group->BeforeAbort([&] {
      released = true;
      cudaGraphExecDestroy(exec);
      cudaGraphDestroy(graph);
    });
    const absl::Time start = absl::Now();
    member->group->Abort();
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    EXPECT_TRUE(released);
    EXPECT_TRUE(absl::IsUnavailable(member->group->Synchronize()));
    // The device goes on.
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  }
}

TEST_F(NcclGpuTest, AMissingRankEndsTheFormationInTimeAndTheNextOneForms) {
  CudaRankMemory memory;
  NcclOptions options;
  options.size = 2;
  options.library = REAL_NCCL;
  options.init_timeout = absl::Seconds(3);
  const absl::Time start = absl::Now();
  const auto group = MakeNcclCommunicator(options, memory.stream(), *MakeLocalControlChannel());
  EXPECT_TRUE(absl::IsUnavailable(group.status())) << group.status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(6));
  MemoryRendezvous store;
  EXPECT_TRUE(Make(0, 1, store).ok());
}

}  // namespace
}  // namespace quicksilver
