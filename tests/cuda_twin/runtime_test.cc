#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/ptx.h"
#include "tests/cuda_twin/kernel_support.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using testing::Each;
using testing::ElementsAre;

class RuntimeTest : public testing::Test {
 protected:
  void TearDown() override { TwinDevice().Reset(); }
};

__global__ void AddKernel(int* value, int amount) { *value += amount; }

cudaError_t LaunchAdd(cudaStream_t stream, int* value, int amount) {
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = 1;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, AddKernel, value, amount);
}

TEST_F(RuntimeTest, MemoryIsPoisonedCountedAndBounded) {
  TwinDevice().SetTotalMemory(1 << 20);
  void* first = nullptr;
  ASSERT_EQ(cudaMalloc(&first, 1000), cudaSuccess);
  std::vector<unsigned char> bytes(1000);
  ASSERT_EQ(cudaMemcpy(bytes.data(), first, 1000, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_THAT(bytes, Each(0xFF));
  size_t free_bytes = 0;
  size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
  EXPECT_EQ(total, size_t{1} << 20);
  EXPECT_EQ(free_bytes, total - 1024);
  void* second = nullptr;
  EXPECT_EQ(cudaMalloc(&second, 1 << 20), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&second, free_bytes), cudaSuccess) << "running out of memory is not for ever";
  EXPECT_EQ(cudaFree(second), cudaSuccess);
  EXPECT_EQ(cudaFree(first), cudaSuccess);
  EXPECT_EQ(cudaFree(first), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(TwinDevice().allocated_bytes(), 0u);
}

TEST_F(RuntimeTest, CopiesCheckBoundsAndSides) {
  const DeviceArray<char> device(100);
  char host[200];
  EXPECT_EQ(cudaMemcpy(device.data(), host, 100, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(device.data() + 1, host, 100, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, device.data() + 50, 51, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, device.data(), 100, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host + 100, host, 100, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device.data(), 0, 101), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host, 0, 10), cudaErrorInvalidValue);
}

TEST_F(RuntimeTest, RowsAreCopiedWithTheirPitches) {
  const DeviceArray<char> device(std::vector<char>{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'});
  char host[6] = {};
  ASSERT_EQ(cudaMemcpy2D(host, 2, device.data() + 1, 3, 2, 3, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  ASSERT_EQ(cudaMemcpy2D(host, 2, device.data(), 3, 2, 3, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(std::string(host, 6), "abdegh");
}

TEST_F(RuntimeTest, PinnedAndRegisteredMemoryIsSeenByTheDevice) {
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, sizeof(int)), cudaSuccess);
  *pinned = 1;
  int* on_device = nullptr;
  ASSERT_EQ(cudaHostGetDevicePointer(&on_device, pinned, 0), cudaSuccess);
  ASSERT_EQ(LaunchAdd(nullptr, on_device, 4), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(*pinned, 5);
  EXPECT_EQ(cudaFree(pinned), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  int registered = 0;
  EXPECT_EQ(cudaHostGetDevicePointer(&on_device, &registered, 0), cudaErrorInvalidValue);
  ASSERT_EQ(cudaHostRegister(&registered, sizeof registered, cudaHostRegisterMapped), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(&registered, sizeof registered, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(cudaHostGetDevicePointer(&on_device, &registered, 0), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(&registered), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(&registered), cudaErrorHostMemoryNotRegistered);
}

TEST_F(RuntimeTest, ThePlannedCallFailsAndOthersDoNot) {
  TwinDevice().FailCall("cudaMalloc", 2, cudaErrorMemoryAllocation);
  void* a = nullptr;
  void* b = nullptr;
  EXPECT_EQ(cudaMalloc(&a, 16), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&b, 16), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&b, 16), cudaSuccess);
  EXPECT_EQ(TwinDevice().calls("cudaMalloc"), 3u);
  EXPECT_EQ(cudaFree(a), cudaSuccess);
  EXPECT_EQ(cudaFree(b), cudaSuccess);
}

TEST_F(RuntimeTest, AnErrorOfAKernelComesFromALaterCallAndStays) {
  const DeviceArray<int> value(std::vector<int>{0});
  TwinDevice().FailCall("kernel", 2, cudaErrorIllegalAddress);
  EXPECT_EQ(LaunchAdd(nullptr, value.data(), 1), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(LaunchAdd(nullptr, value.data(), 1), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorIllegalAddress);
  EXPECT_EQ(TwinDevice().calls("kernel"), 2u);
  TwinDevice().Reset();
  EXPECT_THAT(value.Values(), ElementsAre(1));
}

TEST_F(RuntimeTest, ThePretendedDevicesAreThoseThatWereSet) {
  int count = -1;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  TwinDevice().SetDeviceCount(2);
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  TwinDevice().SetComputeCapability(8, 0);
  int major = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 1), cudaSuccess);
  EXPECT_EQ(major, 8);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  TwinDevice().SetDeviceCount(0);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
}

// Deferred streams.

TEST_F(RuntimeTest, DeferredWorkIsDoneWhenItIsWaitedFor) {
  TwinDevice().SetDeferred(true);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, sizeof(int)), cudaSuccess);
  *pinned = 1;
  ASSERT_EQ(LaunchAdd(stream, pinned, 1), cudaSuccess);
  EXPECT_EQ(*pinned, 1);
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
  EXPECT_EQ(*pinned, 2);
  ASSERT_EQ(LaunchAdd(stream, pinned, 1), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(*pinned, 3);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(RuntimeTest, PinnedMemoryIsReadWhenTheCopyRunsAndPageableWhenItIsEnqueued) {
  TwinDevice().SetDeferred(true);
  const DeviceArray<int> device(2);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, sizeof(int)), cudaSuccess);
  int pageable = 1;
  *pinned = 1;
  ASSERT_EQ(cudaMemcpyAsync(device.data(), pinned, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(device.data() + 1, &pageable, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  *pinned = 2;
  pageable = 2;
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_THAT(device.Values(), ElementsAre(2, 1));
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(RuntimeTest, AStreamWaitsForTheEventOfAnother) {
  TwinDevice().SetDeferred(true);
  const DeviceArray<int> value(std::vector<int>{1});
  cudaStream_t first = nullptr;
  cudaStream_t second = nullptr;
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  int seen[2] = {};
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 2 * sizeof(int)), cudaSuccess);
  for (const bool wait : {false, true}) {
    ASSERT_EQ(cudaMemsetAsync(value.data(), 0, 4, first), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(first), cudaSuccess);
    ASSERT_EQ(LaunchAdd(first, value.data(), 7), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
    if (wait) {
      ASSERT_EQ(cudaStreamWaitEvent(second, event), cudaSuccess);
    }
    ASSERT_EQ(cudaMemcpyAsync(pinned, value.data(), 4, cudaMemcpyDeviceToHost, second), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
    seen[wait ? 1 : 0] = *pinned;
    EXPECT_EQ(cudaEventQuery(event), wait ? cudaSuccess : cudaErrorNotReady);
    ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  }
  EXPECT_EQ(seen[0], 0) << "without the event the second stream does not wait";
  EXPECT_EQ(seen[1], 7);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(first), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(second), cudaSuccess);
  EXPECT_EQ(TwinDevice().streams(), 0u);
  EXPECT_EQ(TwinDevice().events(), 0u);
}

TEST_F(RuntimeTest, TheTimeBetweenEventsNeedsBothToHaveHappened) {
  cudaEvent_t start = nullptr;
  cudaEvent_t end = nullptr;
  ASSERT_EQ(cudaEventCreate(&start), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
  float ms = -1.0f;
  ASSERT_EQ(cudaEventRecord(start), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaEventRecord(end), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaSuccess);
  EXPECT_GE(ms, 0.0f);
  EXPECT_EQ(cudaEventDestroy(start), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(end), cudaSuccess);
}

// Ranks that are threads, each with its stream.

__global__ void ExchangeKernel(uint32_t* own, const uint32_t* other) {
  StoreReleaseSystem(own, 1);
  while (LoadAcquireSystem(other) == 0) SpinPause();
}

TEST_F(RuntimeTest, KernelsOfTwoThreadsMeet) {
  TwinDevice().SetDeviceCount(2);
  const DeviceArray<uint32_t> flags(std::vector<uint32_t>{0, 0});
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.emplace_back([&, rank] {
      EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
      EXPECT_EQ(Launch(ExchangeKernel, 1, 1, 0, flags.data() + rank, flags.data() + (1 - rank)), cudaSuccess);
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_THAT(flags.Values(), ElementsAre(1u, 1u));
}

TEST_F(RuntimeTest, AnIpcHandleSharesMemoryWithinTheProcess) {
  const DeviceArray<int> memory(std::vector<int>{1, 2});
  cudaIpcMemHandle_t handle;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, memory.data()), cudaSuccess);
  void* opened = nullptr;
  ASSERT_EQ(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess), cudaSuccess);
  ASSERT_EQ(LaunchAdd(nullptr, static_cast<int*>(opened), 9), cudaSuccess);
  EXPECT_THAT(memory.Values(), ElementsAre(10, 2));
  EXPECT_EQ(cudaIpcCloseMemHandle(opened), cudaSuccess);
  EXPECT_EQ(cudaIpcCloseMemHandle(opened), cudaErrorInvalidValue);
}

TEST_F(RuntimeTest, AnIpcHandleSharesMemoryWithAnotherProcess) {
  TwinDevice().SetSharedMemory(true);
  const DeviceArray<int> memory(std::vector<int>{1, 2});
  cudaIpcMemHandle_t handle;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, memory.data()), cudaSuccess);
  std::string text;
  for (const char byte : handle.reserved)
    absl::StrAppend(&text, absl::Hex(static_cast<uint8_t>(byte), absl::kZeroPad2));
  const pid_t child = fork();
  if (child == 0) {
    execl(QUICKSILVER_IPC_PEER, QUICKSILVER_IPC_PEER, text.c_str(), nullptr);
    _exit(127);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(memory.Values(), ElementsAre(1, 42));
}

}  // namespace
}  // namespace quicksilver
