#include "worker/collectives/cuda/device_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/collectives/cuda/cuda_rank_memory.h"
#include "tests/collectives/cuda/device_or_twin.h"
#include "tests/collectives/group_of_threads.h"
#include "tests/collectives/parts.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(20);

/// Forms a group of `ranks`, rank r on device device_of(r), and calls `body` with what came of it.
void Form(int ranks, CollectivesKind kind, const std::string& nccl, const std::function<int(int)>& device_of,
          const std::function<void(int, absl::StatusOr<std::unique_ptr<Communicator>>&, CudaRankMemory&)>& body) {
  MemoryRendezvous store;
  RunRanks(ranks, [&](int rank) {
    ASSERT_EQ(cudaSetDevice(device_of(rank)), cudaSuccess);
    CudaRankMemory memory;
    auto control = MakeGlooControlChannel(GlooOptionsFor(rank, ranks, kTimeout), store, kTimeout);
    ASSERT_TRUE(control.ok()) << control.status();
    DeviceCommunicatorOptions options;
    options.rank = rank;
    options.size = ranks;
    options.kind = kind;
    options.nccl_library = nccl;
    options.timeout = kTimeout;
    options.formation = kTimeout;
    auto group = MakeDeviceCommunicator(options, memory.stream(), **control, store);
    body(rank, group, memory);
    EXPECT_TRUE((*control)->Barrier(kTimeout).ok());
  });
}

void ExpectSums(int rank, int ranks, Communicator& group, RankMemory& memory) {
  const RankArray<float> x(memory, PartOf(rank, 1000, 1));
  group.AllReduceSum(x.row(DType::kF32));
  ASSERT_TRUE(group.Synchronize().ok());
  EXPECT_EQ(x.Get(), SumOfParts(ranks, 1000, 1));
}

class DeviceCommunicatorTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(PrepareDevices(1), ""); }
  void TearDown() override { TwinDevice().Reset(); }
};

// Where NCCL refuses two ranks, and nobody has installed it.
TEST_F(DeviceCommunicatorTest, RanksThatShareADeviceNeedNoNccl) {
  Form(
      2, CollectivesKind::kAuto, "/nowhere/libnccl.so.2", [](int) { return 0; },
      [](int rank, auto& group, CudaRankMemory& memory) {
        ASSERT_TRUE(group.ok()) << group.status();
        ExpectSums(rank, 2, **group, memory);
      });
}

TEST_F(DeviceCommunicatorTest, RanksOnDevicesThatReachEachOtherNeedNoNccl) {
  TwinDevice().SetDeviceCount(3);
  Form(
      3, CollectivesKind::kIpc, "/nowhere/libnccl.so.2", [](int rank) { return 2 - rank; },
      [](int rank, auto& group, CudaRankMemory& memory) {
        ASSERT_TRUE(group.ok()) << group.status();
        ExpectSums(rank, 3, **group, memory);
      });
}

TEST_F(DeviceCommunicatorTest, DevicesThatDoNotReachEachOtherTakeNccl) {
  TwinDevice().SetDeviceCount(2);
  TwinDevice().SetPeerAccess(false);
  Form(
      2, CollectivesKind::kAuto, FAKE_NCCL, [](int rank) { return rank; },
      [](int rank, auto& group, CudaRankMemory& memory) {
        ASSERT_TRUE(group.ok()) << group.status();
        ExpectSums(rank, 2, **group, memory);
      });
  EXPECT_EQ(TwinDevice().calls("cudaIpcGetMemHandle"), 0u);
}

TEST_F(DeviceCommunicatorTest, IpcWithoutPeerAccessIsRefusedOnAllRanksNamingThePair) {
  TwinDevice().SetDeviceCount(3);
  TwinDevice().SetPeerAccess(false);
  // Ranks 0 and 1 share a device; all are told of the pair that does not.
  Form(
      3, CollectivesKind::kIpc, FAKE_NCCL, [](int rank) { return rank / 2; },
      [](int, auto& group, CudaRankMemory&) {
        EXPECT_TRUE(absl::IsFailedPrecondition(group.status())) << group.status();
        EXPECT_THAT(std::string(group.status().message()), HasSubstr("rank 0 to rank 2: no peer access from"));
      });
}

TEST_F(DeviceCommunicatorTest, NcclIsTakenWhenItIsAskedFor) {
  Form(
      2, CollectivesKind::kNccl, FAKE_NCCL, [](int) { return 0; },
      [](int rank, auto& group, CudaRankMemory& memory) {
        ASSERT_TRUE(group.ok()) << group.status();
        EXPECT_TRUE((*group)->deterministic());
        ExpectSums(rank, 2, **group, memory);
      });
  Form(
      2, CollectivesKind::kNcclFast, FAKE_NCCL, [](int) { return 0; },
      [](int, auto& group, CudaRankMemory&) {
        ASSERT_TRUE(group.ok()) << group.status();
        EXPECT_FALSE((*group)->deterministic());
      });
}

TEST_F(DeviceCommunicatorTest, AMissingNcclIsNamed) {
  Form(
      1, CollectivesKind::kNccl, "/nowhere/libnccl.so.2", [](int) { return 0; },
      [](int, auto& group, CudaRankMemory&) {
        EXPECT_TRUE(absl::IsNotFound(group.status()));
        EXPECT_THAT(std::string(group.status().message()), HasSubstr("/nowhere/libnccl.so.2"));
      });
}

TEST_F(DeviceCommunicatorTest, OneRankNeedsNobody) {
  Form(
      1, CollectivesKind::kAuto, "/nowhere/libnccl.so.2", [](int) { return 0; },
      [](int rank, auto& group, CudaRankMemory& memory) {
        ASSERT_TRUE(group.ok()) << group.status();
        ExpectSums(rank, 1, **group, memory);
      });
}

TEST(CollectivesKindTest, TheWordsOfTheOptionAreKnownAndNoOther) {
  EXPECT_EQ(*ParseCollectivesKind("auto"), CollectivesKind::kAuto);
  EXPECT_EQ(*ParseCollectivesKind("ipc"), CollectivesKind::kIpc);
  EXPECT_EQ(*ParseCollectivesKind("nccl"), CollectivesKind::kNccl);
  EXPECT_EQ(*ParseCollectivesKind("nccl-fast"), CollectivesKind::kNcclFast);
  EXPECT_TRUE(absl::IsInvalidArgument(ParseCollectivesKind("gloo").status()));
}

}  // namespace
}  // namespace quicksilver
