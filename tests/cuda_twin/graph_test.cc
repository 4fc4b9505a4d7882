#include <cuda_runtime.h>
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
using testing::ElementsAre;

__global__ void AddKernel(int* value, int amount) { *value += amount; }
__global__ void TimesKernel(int* value, int factor) { *value *= factor; }

// Counts down; the loop goes on while something is left.
__global__ void CountDownKernel(int* left, cudaGraphConditionalHandle loop) {
  *left -= 1;
  SetLoopContinues(loop, *left > 0);
}

class GraphTest : public testing::Test {
 protected:
  GraphTest() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&other_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), cudaSuccess);
  }
  ~GraphTest() override {
    EXPECT_EQ(cudaEventDestroy(event_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(other_), cudaSuccess);
    EXPECT_EQ(TwinDevice().graphs(), 0u);
    EXPECT_EQ(TwinDevice().graph_execs(), 0u);
    TwinDevice().Reset();
  }

  template <typename... Parameters>
  static void Run(cudaStream_t stream, void (*kernel)(Parameters...), Parameters... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = 1;
    config.blockDim = 1;
    config.stream = stream;
    ASSERT_EQ(cudaLaunchKernelEx(&config, kernel, arguments...), cudaSuccess);
  }

  // Instantiates, launches `times` times and destroys.
  void Replay(cudaGraph_t graph, int times) {
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    ASSERT_EQ(cudaGraphUpload(exec, stream_), cudaSuccess);
    for (int i = 0; i < times; ++i) ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    ASSERT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  }

  cudaStream_t stream_ = nullptr;
  cudaStream_t other_ = nullptr;
  cudaEvent_t event_ = nullptr;
};

TEST_F(GraphTest, CapturedWorkRunsAtEveryLaunchAndNotBefore) {
  const DeviceArray<int> value(std::vector<int>{1});
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  Run(stream_, TimesKernel, value.data(), 2);
  ASSERT_EQ(cudaMemcpyAsync(value.data(), value.data(), 4, cudaMemcpyDeviceToDevice, stream_), cudaSuccess);
  Run(stream_, AddKernel, value.data(), 1);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ASSERT_EQ(cudaStreamIsCapturing(stream_, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 3u);
  EXPECT_THAT(value.Values(), ElementsAre(1));
  Replay(graph, 3);
  EXPECT_THAT(value.Values(), ElementsAre(15));  // ((1*2+1)*2+1)*2+1
}

TEST_F(GraphTest, ABranchMustBeJoined) {
  const DeviceArray<int> value(std::vector<int>{1});
  for (const bool join : {false, true}) {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    Run(stream_, AddKernel, value.data(), 1);
    ASSERT_EQ(cudaEventRecord(event_, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(other_, event_), cudaSuccess);
    Run(other_, TimesKernel, value.data(), 10);
    ASSERT_EQ(cudaEventRecord(event_, other_), cudaSuccess);
    EXPECT_EQ(cudaEventQuery(event_), cudaErrorCapturedEvent);
    if (join) {
      ASSERT_EQ(cudaStreamWaitEvent(stream_, event_), cudaSuccess);
    }
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(other_, &graph), cudaErrorStreamCaptureUnmatched);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), join ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(graph != nullptr, join);
    if (join) Replay(graph, 1);
  }
  EXPECT_THAT(value.Values(), ElementsAre(20));
}

// A fork without the join it needs: the nodes may run in either order.
TEST_F(GraphTest, NodesThatDoNotDependOnEachOtherRunInAnyOrder) {
  std::set<int> results;
  for (uint64_t seed = 2; seed < 20; ++seed) {
    TwinDevice().SetThreadOrderSeed(seed);
    const DeviceArray<int> value(std::vector<int>{1});
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(event_, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(other_, event_), cudaSuccess);
    Run(stream_, AddKernel, value.data(), 1);
    Run(other_, TimesKernel, value.data(), 10);
    ASSERT_EQ(cudaEventRecord(event_, other_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(stream_, event_), cudaSuccess);
    Run(stream_, AddKernel, value.data(), 100);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    Replay(graph, 1);
    results.insert(value.Values()[0]);
  }
  EXPECT_THAT(results, ElementsAre(111, 120));
}

TEST_F(GraphTest, CallsThatACaptureForbidsInvalidateIt) {
  const DeviceArray<int> value(std::vector<int>{1});
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorIllegalState);
}

TEST_F(GraphTest, ABlockingStreamIsNotCapturedBesideTheDefaultStream) {
  const DeviceArray<int> value(std::vector<int>{1});
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(value.data(), 0, 4, nullptr), cudaErrorStreamCaptureImplicit);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(blocking, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
}

// A loop built inside of a capture, as a step program does it.
TEST_F(GraphTest, AWhileNodeRunsItsBodyUntilAKernelEndsIt) {
  for (const uint64_t seed : {0, 5}) {
    TwinDevice().SetThreadOrderSeed(seed);
    const DeviceArray<int> left(std::vector<int>{5});
    const DeviceArray<int> value(std::vector<int>{0});
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    Run(stream_, AddKernel, value.data(), 1000);
    cudaStreamCaptureStatus status;
    cudaGraph_t graph = nullptr;
    const cudaGraphNode_t* before = nullptr;
    size_t before_count = 0;
    ASSERT_EQ(cudaStreamGetCaptureInfo(stream_, &status, nullptr, &graph, &before, nullptr, &before_count),
              cudaSuccess);
    cudaGraphConditionalHandle loop = 0;
    ASSERT_EQ(cudaGraphConditionalHandleCreate(&loop, graph, 1, cudaGraphCondAssignDefault), cudaSuccess);
    cudaGraphNodeParams parameters{};
    parameters.type = cudaGraphNodeTypeConditional;
    parameters.conditional.handle = loop;
    parameters.conditional.type = cudaGraphCondTypeWhile;
    parameters.conditional.size = 1;
    cudaGraphNode_t node = nullptr;
    ASSERT_EQ(cudaGraphAddNode(&node, graph, before, nullptr, before_count, &parameters), cudaSuccess);
    const cudaGraph_t body = parameters.conditional.phGraph_out[0];
    ASSERT_EQ(cudaStreamUpdateCaptureDependencies(stream_, &node, nullptr, 1, cudaStreamSetCaptureDependencies),
              cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCaptureToGraph(other_, body, nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal),
              cudaSuccess);
    Run(other_, AddKernel, value.data(), 1);
    Run(other_, CountDownKernel, left.data(), loop);
    cudaGraph_t same_body = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(other_, &same_body), cudaSuccess);
    EXPECT_EQ(same_body, body);
    Run(stream_, TimesKernel, value.data(), 2);
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    Replay(graph, 2);  // 5 rounds; then the default brings one more.
    EXPECT_THAT(value.Values(), ElementsAre(((1000 + 5) * 2 + 1000 + 1) * 2)) << "seed " << seed;
  }
}

TEST_F(GraphTest, AnIfNodeChoosesItsBody) {
  for (const unsigned choice : {0u, 1u}) {
    const DeviceArray<int> value(std::vector<int>{1});
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaGraphCreate(&graph, 0), cudaSuccess);
    cudaGraphConditionalHandle handle = 0;
    ASSERT_EQ(cudaGraphConditionalHandleCreate(&handle, graph, choice, cudaGraphCondAssignDefault), cudaSuccess);
    cudaGraphNodeParams parameters{};
    parameters.type = cudaGraphNodeTypeConditional;
    parameters.conditional.handle = handle;
    parameters.conditional.type = cudaGraphCondTypeIf;
    parameters.conditional.size = 2;
    cudaGraphNode_t node = nullptr;
    ASSERT_EQ(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &parameters), cudaSuccess);
    for (int i = 0; i < 2; ++i) {
      ASSERT_EQ(cudaStreamBeginCaptureToGraph(stream_, parameters.conditional.phGraph_out[i], nullptr, nullptr, 0,
                                              cudaStreamCaptureModeRelaxed),
                cudaSuccess);
      Run(stream_, AddKernel, value.data(), i == 0 ? 10 : 20);
      cudaGraph_t body = nullptr;
      ASSERT_EQ(cudaStreamEndCapture(stream_, &body), cudaSuccess);
    }
    Replay(graph, 1);
    EXPECT_THAT(value.Values(), ElementsAre(choice == 1 ? 11 : 21));
  }
}

TEST_F(GraphTest, AConditionOutlivesNoGraph) {
  const DeviceArray<int> left(std::vector<int>{5});
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaGraphCreate(&graph, 0), cudaSuccess);
  cudaGraphConditionalHandle handle = 0;
  ASSERT_EQ(cudaGraphConditionalHandleCreate(&handle, graph, 0, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_DEATH(Run(stream_, CountDownKernel, left.data(), handle), "no living graph");
}

}  // namespace
}  // namespace quicksilver
