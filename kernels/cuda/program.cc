#include "kernels/cuda/program.h"

#include <utility>

#include "common/status_macros.h"

namespace quicksilver {
namespace {

struct GraphDestroy {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using Graph = std::unique_ptr<CUgraph_st, GraphDestroy>;

absl::StatusOr<Graph> MakeGraph() {
  cudaGraph_t graph = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaGraphCreate(&graph, 0), "cudaGraphCreate"));
  return Graph(graph);
}

/// Records into `into`, which is `graph` or belongs to it.
absl::Status Capture(cudaStream_t stream, cudaGraph_t into, Graph& graph,
                     const std::function<absl::Status()>& enqueue) {
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamBeginCaptureToGraph(stream, into, nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCaptureToGraph"));
  const absl::Status enqueued = enqueue();
  cudaGraph_t captured = nullptr;
  const absl::Status ended = CudaStatus(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
  // A capture that was broken off takes `into` with it, and destroying the graph might free that again (in drivers of
  // CUDA 13, NVBUG 6805256).
  if (!ended.ok()) graph.release();
  return enqueued.ok() ? ended : enqueued;  // The first failure names the culprit; the end only follows from it.
}

/// A loop in `graph` that runs its body at least once; the body is empty.
struct Loop {
  cudaGraphConditionalHandle handle = 0;
  cudaGraph_t body = nullptr;  // Belongs to the graph.
};

absl::StatusOr<Loop> AddLoop(cudaGraph_t graph) {
  Loop loop;
  RETURN_IF_ERROR(CudaStatus(cudaGraphConditionalHandleCreate(&loop.handle, graph, 1, cudaGraphCondAssignDefault),
                             "cudaGraphConditionalHandleCreate"));
  cudaGraphNodeParams parameters = {};
  parameters.type = cudaGraphNodeTypeConditional;
  parameters.conditional.handle = loop.handle;
  parameters.conditional.type = cudaGraphCondTypeWhile;
  parameters.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &parameters), "cudaGraphAddNode"));
  loop.body = parameters.conditional.phGraph_out[0];
  return loop;
}

absl::Status CaptureLoop(cudaStream_t stream, Graph& graph, const int32_t* proceed,
                         const std::function<absl::Status()>& enqueue) {
  ASSIGN_OR_RETURN(const Loop loop, AddLoop(graph.get()));
  return Capture(stream, loop.body, graph, [&]() -> absl::Status {
    RETURN_IF_ERROR(enqueue());
    return CudaStatus(LaunchContinueLoop(loop.handle, proceed, stream), "the end of a recorded loop");
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<RecordedGraph>> RecordedGraph::Record(cudaStream_t stream, const int32_t* proceed,
                                                                     const std::function<absl::Status()>& enqueue) {
  ASSIGN_OR_RETURN(Graph graph, MakeGraph());
  RETURN_IF_ERROR(proceed == nullptr ? Capture(stream, graph.get(), graph, enqueue)
                                     : CaptureLoop(stream, graph, proceed, enqueue));
  cudaGraphExec_t exec = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaGraphInstantiate(&exec, graph.get(), 0), "cudaGraphInstantiate"));
  std::unique_ptr<RecordedGraph> recorded(new RecordedGraph(exec));
  // The first launch is then no slower than the others; where it fails, nothing else is lost.
  if (cudaGraphUpload(exec, stream) != cudaSuccess) cudaGetLastError();
  return recorded;
}

RecordedGraph::~RecordedGraph() { cudaGraphExecDestroy(exec_); }

}  // namespace quicksilver
