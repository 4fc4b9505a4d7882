#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/ptx.h"
#include "tests/cuda_twin/kernel_support.h"
#include "tests/support/cuda_twin/twin_device.h"

// Compiled as the kernels are: with calls at every access of memory.

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;

class RaceCheckTest : public testing::Test {
 protected:
  void TearDown() override { TwinDevice().Reset(); }
};

using RaceCheckDeathTest = RaceCheckTest;

constexpr int kNoBarrier = 0;
constexpr int kWarpBarrier = 1;
constexpr int kBlockBarrier = 2;
constexpr int kShuffle = 3;

__device__ void Wait(int how) {
  if (how == kWarpBarrier) __syncwarp();
  if (how == kBlockBarrier) __syncthreads();
  if (how == kShuffle) __shfl_sync(0xFFFFFFFFu, 1, 0);
}

// Each thread writes a word and reads that of the thread `distance` further on.
__global__ void NeighbourKernel(int distance, int how, int* out) {
  int* shared = reinterpret_cast<int*>(SharedMemory());
  const int thread = threadIdx.x;
  shared[thread] = thread;
  Wait(how);
  out[thread] = shared[(thread + distance) % blockDim.x];
}

TEST_F(RaceCheckTest, WhatABarrierOrdersIsNoRace) {
  const DeviceArray<int> out(64);
  for (const uint64_t seed : {0, 1, 4}) {
    TwinDevice().SetThreadOrderSeed(seed);
    EXPECT_EQ(Launch(NeighbourKernel, 1, 64, 256, 33, kBlockBarrier, out.data()), cudaSuccess);
    EXPECT_EQ(Launch(NeighbourKernel, 1, 32, 256, 1, kWarpBarrier, out.data()), cudaSuccess);
    EXPECT_EQ(Launch(NeighbourKernel, 1, 64, 256, 0, kNoBarrier, out.data()), cudaSuccess) << "its own word";
  }
}

TEST_F(RaceCheckDeathTest, AReadBeforeTheBarrierIsFoundInAnyOrder) {
  const DeviceArray<int> out(64);
  for (const uint64_t seed : {0, 1, 4}) {
    TwinDevice().SetThreadOrderSeed(seed);
    EXPECT_DEATH(Launch(NeighbourKernel, 1, 64, 256, 33, kNoBarrier, out.data()), "race: .*NeighbourKernel");
    EXPECT_DEATH(Launch(NeighbourKernel, 1, 64, 256, 33, kWarpBarrier, out.data()), "race: .*no barrier is between");
    EXPECT_DEATH(Launch(NeighbourKernel, 1, 32, 256, 1, kNoBarrier, out.data()), "shared memory at byte");
    EXPECT_DEATH(Launch(NeighbourKernel, 1, 32, 256, 1, kShuffle, out.data()), "race") << "shuffles order no memory";
  }
}

TEST_F(RaceCheckDeathTest, ItCanBeSwitchedOff) {
  const DeviceArray<int> out(64);
  TwinDevice().SetRaceCheck(false);
  EXPECT_EQ(Launch(NeighbourKernel, 1, 64, 256, 33, kNoBarrier, out.data()), cudaSuccess);
}

// The buffer is written again; the barrier between the reads and that may be missing.
__global__ void ReuseKernel(bool barrier, int* out) {
  int* shared = reinterpret_cast<int*>(SharedMemory());
  const int thread = threadIdx.x;
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    shared[thread] = thread + round;
    __syncthreads();
    for (int i = 0; i < static_cast<int>(blockDim.x); ++i) sum += shared[i];
    if (barrier) __syncthreads();
  }
  out[thread] = sum;
}

TEST_F(RaceCheckDeathTest, AWriteOverWhatOthersMayStillReadIsFound) {
  const DeviceArray<int> out(64);
  EXPECT_EQ(Launch(ReuseKernel, 1, 64, 256, true, out.data()), cudaSuccess);
  EXPECT_DEATH(Launch(ReuseKernel, 1, 64, 256, false, out.data()), "race: ");
}

// Neighbours write halves of one word: no race. All write the same word: a race, even of equal values.
__global__ void HalvesKernel(bool same_word) {
  if (same_word) {
    reinterpret_cast<int*>(SharedMemory())[0] = 1;
  } else {
    reinterpret_cast<uint16_t*>(SharedMemory())[threadIdx.x] = 1;
  }
}

TEST_F(RaceCheckDeathTest, BytesAreToldApart) {
  EXPECT_EQ(Launch(HalvesKernel, 1, 64, 128, false), cudaSuccess);
  EXPECT_DEATH(Launch(HalvesKernel, 1, 64, 128, true), "race: .* writes what .* wrote");
}

// Every thread writes a byte; then each reads the word that holds its own.
__global__ void BytesKernel(bool barrier, unsigned* out) {
  unsigned char* shared = SharedMemory();
  const int thread = threadIdx.x;
  for (int round = 0; round < 3; ++round) {
    shared[thread] = static_cast<unsigned char>(thread + round);
    if (barrier || round < 2) __syncthreads();
    out[thread] = reinterpret_cast<unsigned*>(shared)[thread / 4];
    __syncthreads();
  }
}

TEST_F(RaceCheckDeathTest, AWordIsTheSumOfItsBytes) {
  const DeviceArray<unsigned> out(64);
  EXPECT_EQ(Launch(BytesKernel, 1, 64, 64, true, out.data()), cudaSuccess);
  EXPECT_EQ(out.Values()[0], 0x05040302u);
  EXPECT_DEATH(Launch(BytesKernel, 1, 64, 64, false, out.data()), "race: ");
}

// Copies of every thread, read by its neighbour.
__global__ void CopyKernel(const uint4* in, bool barrier, bool early_reuse, uint4* out) {
  auto* shared = reinterpret_cast<uint4*>(SharedMemory());
  const int thread = threadIdx.x;
  CopyAsync16(shared + thread, in + thread, true);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  if (barrier) __syncthreads();
  out[thread] = shared[(thread + 1) % blockDim.x];
  if (!early_reuse) __syncthreads();
  CopyAsync16(shared + thread, in, true);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
}

TEST_F(RaceCheckDeathTest, AsynchronousCopiesAreWritesFromTheirStart) {
  const DeviceArray<uint4> in(64);
  const DeviceArray<uint4> out(64);
  EXPECT_EQ(Launch(CopyKernel, 1, 64, 1024, in.data(), true, false, out.data()), cudaSuccess);
  EXPECT_DEATH(Launch(CopyKernel, 1, 64, 1024, in.data(), false, false, out.data()), "race: ");
  EXPECT_DEATH(Launch(CopyKernel, 1, 64, 1024, in.data(), true, true, out.data()), "race: ");
}

__global__ void LoadKernel(bool barrier, uint32_t* out) {
  auto* shared = reinterpret_cast<uint4*>(SharedMemory());
  const int thread = threadIdx.x;
  shared[31 - thread] = uint4{};
  if (barrier) __syncwarp();
  uint32_t r[4];
  LoadMatrix4(r, shared + thread);
  out[thread] = r[0];
}

TEST_F(RaceCheckDeathTest, MatrixLoadsAreReads) {
  const DeviceArray<uint32_t> out(32);
  EXPECT_EQ(Launch(LoadKernel, 1, 32, 512, true, out.data()), cudaSuccess);
  EXPECT_DEATH(Launch(LoadKernel, 1, 32, 512, false, out.data()), "race: ");
}

// Global memory of one block, and of several.
__global__ void GlobalKernel(int distance, int* values, int* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int count = blockDim.x * gridDim.x;
  values[i] = i;
  __syncthreads();
  out[i] = values[(i + distance) % count];
}

TEST_F(RaceCheckDeathTest, BlocksDoNotReadWhatOthersWrite) {
  const DeviceArray<int> values(128);
  const DeviceArray<int> out(128);
  EXPECT_EQ(Launch(GlobalKernel, 1, 128, 0, 1, values.data(), out.data()), cudaSuccess);
  EXPECT_EQ(Launch(GlobalKernel, 2, 64, 0, 0, values.data(), out.data()), cudaSuccess);
  EXPECT_DEATH(Launch(GlobalKernel, 2, 64, 0, 1, values.data(), out.data()), "race: .* of another block");
}

// The last block to finish adds up what all have written: ordered by the counter.
__global__ void LastBlockKernel(int* values, unsigned* arrived, int* sum) {
  if (threadIdx.x != 0) return;
  values[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
  __threadfence();
  if (atomicAdd(arrived, 1u) != gridDim.x - 1) return;
  for (unsigned i = 0; i < gridDim.x; ++i) *sum += values[i];
}

TEST_F(RaceCheckTest, ACounterOrdersBlocks) {
  const DeviceArray<int> values(10);
  const DeviceArray<unsigned> arrived(std::vector<unsigned>{0});
  const DeviceArray<int> sum(std::vector<int>{0});
  for (const uint64_t seed : {0, 1, 4}) {
    TwinDevice().SetThreadOrderSeed(seed);
    ASSERT_EQ(cudaMemset(arrived.data(), 0, 4), cudaSuccess);
    ASSERT_EQ(cudaMemset(sum.data(), 0, 4), cudaSuccess);
    EXPECT_EQ(Launch(LastBlockKernel, 10, 32, 0, values.data(), arrived.data(), sum.data()), cudaSuccess);
    EXPECT_THAT(sum.Values(), testing::ElementsAre(55));
  }
}

__global__ void AtomicKernel(bool plain_read, int* out) {
  int* shared = reinterpret_cast<int*>(SharedMemory());
  if (threadIdx.x == 0) *shared = 0;
  __syncthreads();
  atomicAdd(shared, 1);
  if (!plain_read) __syncthreads();
  out[threadIdx.x] = *shared;
}

TEST_F(RaceCheckDeathTest, AtomicsRaceOnlyWithPlainAccesses) {
  const DeviceArray<int> out(64);
  EXPECT_EQ(Launch(AtomicKernel, 1, 64, 4, false, out.data()), cudaSuccess);
  EXPECT_DEATH(Launch(AtomicKernel, 1, 64, 4, true, out.data()), "race");
}

}  // namespace
}  // namespace quicksilver
