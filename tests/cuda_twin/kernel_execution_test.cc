#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kernels/cuda/ptx.h"
#include "tests/cuda_twin/kernel_support.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using testing::Each;

class KernelExecutionTest : public testing::Test {
 protected:
  void TearDown() override { TwinDevice().Reset(); }
};

__global__ void IndexKernel(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(&out[block * threads + thread], block * threads + thread + 1);
}

TEST_F(KernelExecutionTest, EveryThreadOfEveryBlockRunsOnce) {
  for (const uint64_t seed : {0, 1, 2, 7}) {
    TwinDevice().SetThreadOrderSeed(seed);
    const DeviceArray<unsigned> out(std::vector<unsigned>(2 * 3 * 5 * 8 * 3 * 2));
    ASSERT_EQ(Launch(IndexKernel, dim3(2, 3, 5), dim3(8, 3, 2), 0, out.data()), cudaSuccess);
    const std::vector<unsigned> values = out.Values();
    for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], i + 1) << "seed " << seed;
  }
}

// Each thread passes its number to its right neighbour, again and again.
__global__ void RotateKernel(int rounds, int* out) {
  int* shared = reinterpret_cast<int*>(SharedMemory());
  const int thread = threadIdx.x;
  const int count = blockDim.x;
  shared[thread] = thread;
  __syncthreads();
  for (int i = 0; i < rounds; ++i) {
    const int left = shared[(thread + count - 1) % count];
    __syncthreads();
    shared[thread] = left;
    __syncthreads();
  }
  out[blockIdx.x * count + thread] = shared[thread];
}

TEST_F(KernelExecutionTest, BarriersOrderSharedMemoryInEveryThreadOrder) {
  constexpr int kThreads = 100;
  constexpr int kRounds = 13;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    TwinDevice().SetThreadOrderSeed(seed);
    const DeviceArray<int> out(kThreads * 4);
    ASSERT_EQ(Launch(RotateKernel, 4, kThreads, kThreads * 4, kRounds, out.data()), cudaSuccess);
    const std::vector<int> values = out.Values();
    for (int i = 0; i < kThreads * 4; ++i) {
      ASSERT_EQ(values[i], (i % kThreads + kThreads - kRounds) % kThreads) << "seed " << seed;
    }
  }
}

// Without a barrier the result is whatever the order makes it.
__global__ void RaceKernel(int* out) {
  int* shared = reinterpret_cast<int*>(SharedMemory());
  const int thread = threadIdx.x;
  shared[thread] = thread;
  out[thread] = shared[(thread + 1) % blockDim.x];
}

TEST_F(KernelExecutionTest, ARaceGivesOtherResultsInOtherOrders) {
  std::set<std::vector<int>> results;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    TwinDevice().SetThreadOrderSeed(seed);
    const DeviceArray<int> out(64);
    ASSERT_EQ(Launch(RaceKernel, 1, 64, 64 * 4, out.data()), cudaSuccess);
    results.insert(out.Values());
  }
  EXPECT_GT(results.size(), 3u);
}

__global__ void CountKernel(int* out) {
  const int odd = __syncthreads_count(threadIdx.x % 2);
  const int any = __syncthreads_or(threadIdx.x == 63);
  const int all = __syncthreads_and(threadIdx.x != 63);
  if (threadIdx.x == 5) {
    out[0] = odd;
    out[1] = any;
    out[2] = all;
  }
}

TEST_F(KernelExecutionTest, BarriersCountPredicates) {
  const DeviceArray<int> out(3);
  ASSERT_EQ(Launch(CountKernel, 1, 64, 0, out.data()), cudaSuccess);
  EXPECT_THAT(out.Values(), testing::ElementsAre(32, 1, 0));
}

__global__ void ReadSharedKernel(unsigned* out) {
  out[threadIdx.x] = reinterpret_cast<unsigned*>(SharedMemory())[threadIdx.x];
}

TEST_F(KernelExecutionTest, SharedMemoryIsPoisonedForEveryBlock) {
  const DeviceArray<int> rotated(32);
  ASSERT_EQ(Launch(RotateKernel, 1, 32, 128, 1, rotated.data()), cudaSuccess);
  const DeviceArray<unsigned> out(32);
  ASSERT_EQ(Launch(ReadSharedKernel, 1, 32, 128, out.data()), cudaSuccess);
  EXPECT_THAT(out.Values(), Each(0xFFFFFFFFu));
}

__global__ void CopyKernel(const uint4* in, int groups_left, bool commit, uint4* out) {
  auto* shared = reinterpret_cast<uint4*>(SharedMemory());
  CopyAsync16(shared, in, true);
  CopyAsyncCommit();
  CopyAsync16(shared + 1, in + 1, true);
  if (commit) CopyAsyncCommit();
  CopyAsync16(shared + 2, in + 2, false);
  if (commit) CopyAsyncCommit();
  if (groups_left == 0) CopyAsyncWait<0>();
  if (groups_left == 1) CopyAsyncWait<1>();
  if (groups_left == 2) CopyAsyncWait<2>();
  for (int i = 0; i < 3; ++i) out[i] = shared[i];
}

std::vector<unsigned> Copied(int groups_left, bool commit) {
  const DeviceArray<uint4> in(std::vector<uint4>{{1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}});
  const DeviceArray<uint4> out(3);
  EXPECT_EQ(Launch(CopyKernel, 1, 1, 48, in.data(), groups_left, commit, out.data()), cudaSuccess);
  std::vector<unsigned> first;
  for (const uint4& v : out.Values()) first.push_back(v.w);
  return first;
}

TEST_F(KernelExecutionTest, AnAsynchronousCopyIsThereOnlyAfterTheWaitThatCoversIt) {
  constexpr unsigned kPoison = 0xFFFFFFFFu;
  EXPECT_THAT(Copied(0, true), testing::ElementsAre(1, 2, 0));
  EXPECT_THAT(Copied(1, true), testing::ElementsAre(1, 2, kPoison));
  EXPECT_THAT(Copied(2, true), testing::ElementsAre(1, kPoison, kPoison));
  EXPECT_THAT(Copied(3, true), testing::ElementsAre(kPoison, kPoison, kPoison));
  EXPECT_THAT(Copied(0, false), testing::ElementsAre(1, kPoison, kPoison)) << "copies that no group was closed over";
}

// Block 0 waits for the last one, which begins only because everyone polls.
__global__ void WaitForLastBlockKernel(uint32_t* flag) {
  if (threadIdx.x == 0) {
    if (blockIdx.x == gridDim.x - 1) StoreReleaseDevice(flag, 1);
    while (LoadAcquireDevice(flag) == 0) SpinPause();
  }
  __syncthreads();
}

TEST_F(KernelExecutionTest, BlocksThatWaitForLaterBlocksGoOn) {
  const DeviceArray<uint32_t> flag(std::vector<uint32_t>{0});
  ASSERT_EQ(Launch(WaitForLastBlockKernel, 5, 64, 0, flag.data()), cudaSuccess);
  EXPECT_THAT(flag.Values(), testing::ElementsAre(1u));
}

// All blocks wait until all have arrived.
__global__ void GridBarrierKernel(unsigned* arrived, unsigned* seen) {
  if (threadIdx.x == 0) {
    atomicAdd(arrived, 1u);
    while (LoadAcquireDevice(arrived) < gridDim.x) SpinPause();
  }
  __syncthreads();
  seen[blockIdx.x * blockDim.x + threadIdx.x] = *arrived;
}

TEST_F(KernelExecutionTest, BlocksOfACooperativeLaunchRunTogether) {
  const DeviceArray<unsigned> arrived(std::vector<unsigned>{0});
  const DeviceArray<unsigned> seen(20 * 64);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = 20;
  config.blockDim = 64;
  config.attrs = &attribute;
  config.numAttrs = 1;
  ASSERT_EQ(cudaLaunchKernelEx(&config, GridBarrierKernel, arrived.data(), seen.data()), cudaSuccess);
  EXPECT_THAT(seen.Values(), Each(20u));
  config.gridDim = 132 * 64;
  EXPECT_EQ(cudaLaunchKernelEx(&config, GridBarrierKernel, arrived.data(), seen.data()),
            cudaErrorCooperativeLaunchTooLarge);
}

__global__ void EmptyKernel() {}

TEST_F(KernelExecutionTest, LaunchesThatADeviceRefusesFail) {
  EXPECT_EQ(Launch(EmptyKernel, 1, 1024, 0), cudaSuccess);
  EXPECT_EQ(Launch(EmptyKernel, 1, 1025, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(Launch(EmptyKernel, 0, 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(Launch(EmptyKernel, dim3(1, 65536), 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(Launch(EmptyKernel, 1, dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
}

TEST_F(KernelExecutionTest, MoreThan48KiBOfSharedMemoryMustBeAskedFor) {
  EXPECT_EQ(Launch(ReadSharedKernel, 1, 1, 48 * 1024 + 1, nullptr), cudaErrorInvalidValue);
  const DeviceArray<unsigned> out(1);
  EXPECT_EQ(Launch(ReadSharedKernel, 1, 1, 48 * 1024, out.data()), cudaSuccess);
  EXPECT_EQ(cudaFuncSetAttribute(ReadSharedKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024 + 1),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(ReadSharedKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024),
            cudaSuccess);
  EXPECT_EQ(Launch(ReadSharedKernel, 1, 1, 227 * 1024, out.data()), cudaSuccess);
  EXPECT_EQ(Launch(ReadSharedKernel, 1, 1, 227 * 1024 + 1, out.data()), cudaErrorInvalidValue);
}

// What aborts, and what it says.

using KernelDeathTest = KernelExecutionTest;

__global__ void PollKernel(const uint32_t* flag) {
  while (LoadAcquireDevice(flag) == 0) SpinPause();
}

__global__ void BarrierAgainstShuffleKernel() {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    __shfl_sync(0xFFFFFFFFu, 1, 0);
  }
}

__global__ void MixedWarpKernel() {
  if (threadIdx.x < 16) {
    __shfl_xor_sync(0xFFFFFFFFu, 1, 1);
  } else {
    __any_sync(0xFFFFFFFFu, 1);
  }
}

__global__ void EarlyReturnKernel() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

__global__ void PartialMaskKernel() { __shfl_sync(0xFFFFu, 1, 0); }

TEST_F(KernelDeathTest, ADeadlockNamesKernelAndThreads) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Launch(BarrierAgainstShuffleKernel, 1, 64, 0),
               "deadlock.*BarrierAgainstShuffleKernel.*threads 0 to 15: __syncthreads.*threads 16 to 31: __shfl_sync");
}

TEST_F(KernelDeathTest, ThreadsOfAWarpMustBeAtTheSameOperation) {
  EXPECT_DEATH(Launch(MixedWarpKernel, 1, 32, 0), "different warp operations.*MixedWarpKernel");
}

TEST_F(KernelDeathTest, AThreadThatHasEndedIsMissedAtTheBarrier) {
  EXPECT_DEATH(Launch(EarlyReturnKernel, 1, 32, 0), "has ended.*EarlyReturnKernel");
}

TEST_F(KernelDeathTest, MasksMustBeFullAndWarpsWhole) {
  EXPECT_DEATH(Launch(PartialMaskKernel, 1, 32, 0), "mask is not full");
  EXPECT_DEATH(Launch(MixedWarpKernel, 1, 48, 0), "fewer than 32 threads|different warp operations");
}

TEST_F(KernelDeathTest, PollingInVainIsADeadlockInTheEnd) {
  TwinDevice().SetSpinSecondsMax(1);
  const DeviceArray<uint32_t> flag(std::vector<uint32_t>{0});
  EXPECT_DEATH(Launch(PollKernel, 1, 64, 0, flag.data()), "poll memory that nobody changes.*PollKernel");
}

__global__ void OffsetCopyKernel(const char* in, int offset) {
  CopyAsync16(SharedMemory(), in + offset, true);
  CopyAsyncWait<0>();
}

TEST_F(KernelDeathTest, CopiesMustBeAlignedAndInsideOfAllocations) {
  const DeviceArray<char> in(64);
  EXPECT_DEATH(Launch(OffsetCopyKernel, 1, 1, 16, in.data(), 8), "misaligned global memory");
  EXPECT_DEATH(Launch(OffsetCopyKernel, 1, 1, 16, in.data(), 64), "outside of all allocations");
  EXPECT_DEATH(Launch(OffsetCopyKernel, 1, 1, 8, in.data(), 0), "outside of the block's shared memory");
}

__global__ void WriteSharedKernel(int at) { SharedMemory()[at] = 1; }

TEST_F(KernelDeathTest, WritesBehindSharedMemoryAreFound) {
  EXPECT_EQ(Launch(WriteSharedKernel, 1, 1, 100, 99), cudaSuccess);
  EXPECT_DEATH(Launch(WriteSharedKernel, 1, 1, 100, 100), "WriteSharedKernel|use-after-poison");
  EXPECT_DEATH(Launch(WriteSharedKernel, 1, 1, 100, 128), "");
}

__global__ void WriteGlobalKernel(int* memory, int at) { memory[at] = 1; }

__global__ void DeepKernel(int depth, int* out) {
  volatile char frame[1024];
  frame[depth % 1024] = 1;
  if (depth > 0) DeepKernel(depth - 1, out);
  *out = frame[0];
}

TEST_F(KernelDeathTest, FaultsNameTheKernel) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer reports them";
#endif
  const DeviceArray<int> memory(64);
  EXPECT_EQ(Launch(WriteGlobalKernel, 1, 1, 0, memory.data(), 63), cudaSuccess);
  EXPECT_DEATH(Launch(WriteGlobalKernel, 1, 1, 0, memory.data(), 64), "segmentation fault.*WriteGlobalKernel");
  EXPECT_EQ(Launch(DeepKernel, 1, 1, 0, 10, memory.data()), cudaSuccess);
  EXPECT_DEATH(Launch(DeepKernel, 1, 1, 0, 1000, memory.data()), "segmentation fault.*DeepKernel");
}

}  // namespace
}  // namespace quicksilver
