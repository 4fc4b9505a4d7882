#include <algorithm>

#include "common/mutex.h"
#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/graph.h"
#include "tests/support/cuda_twin/stream_state.h"

namespace quicksilver::cuda_twin {
namespace {

struct Captures {
  Mutex mu;
  std::vector<std::shared_ptr<Capture>> captures;
  unsigned long long next_id = 1;
};

Captures& State() {
  static auto* captures = new Captures;
  return *captures;
}

thread_local cudaStreamCaptureMode thread_capture_mode = cudaStreamCaptureModeGlobal;

cudaError_t Begin(const std::shared_ptr<CUstream_st>& stream, cudaGraph_t graph, bool owns_graph,
                  std::vector<cudaGraphNode_t> frontier, cudaStreamCaptureMode mode) {
  auto capture = std::make_shared<Capture>();
  capture->graph = graph;
  capture->owns_graph = owns_graph;
  capture->first_node = graph->nodes.size();
  capture->origin = stream.get();
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  {
    MutexLock lock(State().mu);
    capture->id = State().next_id++;
    State().captures.push_back(capture);
  }
  MutexLock lock(stream->mu);
  stream->capture = capture;
  stream->frontier = std::move(frontier);
  return cudaSuccess;
}

}  // namespace

std::shared_ptr<Capture> CaptureOf(const std::shared_ptr<CUstream_st>& stream) {
  MutexLock lock(stream->mu);
  return stream->capture;
}

void EndCapture(const std::shared_ptr<Capture>& capture) {
  for (const auto& stream : AllStreams()) {
    MutexLock lock(stream->mu);
    if (stream->capture != capture) continue;
    stream->capture = nullptr;
    stream->frontier.clear();
  }
  MutexLock lock(State().mu);
  std::erase(State().captures, capture);
}

bool ThisThreadCaptures() {
  MutexLock lock(State().mu);
  return std::any_of(State().captures.begin(), State().captures.end(),
                     [](const auto& capture) { return capture->thread == std::this_thread::get_id(); });
}

cudaError_t CheckNoCapture() {
  if (thread_capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  MutexLock lock(State().mu);
  for (const auto& capture : State().captures) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    const bool own = capture->thread == std::this_thread::get_id();
    const bool global =
        capture->mode == cudaStreamCaptureModeGlobal && thread_capture_mode == cudaStreamCaptureModeGlobal;
    if (own || global) {
      capture->invalidated = true;
      return cudaErrorStreamCaptureUnsupported;
    }
  }
  return cudaSuccess;
}

}  // namespace quicksilver::cuda_twin

using namespace quicksilver::cuda_twin;
using quicksilver::MutexLock;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return Api("cudaStreamBeginCapture", [&] {
    const auto stream = FindStream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->is_default) return cudaErrorStreamCaptureUnsupported;
    if (CaptureOf(stream)) return cudaErrorIllegalState;
    return Begin(stream, NewCapturedGraph(), true, {}, mode);
  });
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                                          const cudaGraphEdgeData*, size_t count, cudaStreamCaptureMode mode) {
  return Api("cudaStreamBeginCaptureToGraph", [&] {
    const auto stream = FindStream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (graph == nullptr) return cudaErrorInvalidValue;
    if (stream->is_default) return cudaErrorStreamCaptureUnsupported;
    if (CaptureOf(stream)) return cudaErrorIllegalState;
    return Begin(stream, graph, false, {dependencies, dependencies + count}, mode);
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return Api("cudaStreamEndCapture", [&] {
    const auto stream = FindStream(handle);
    if (!stream || graph == nullptr) return cudaErrorInvalidResourceHandle;
    *graph = nullptr;
    const auto capture = CaptureOf(stream);
    if (!capture) return cudaErrorIllegalState;
    if (capture->origin != stream.get()) return cudaErrorStreamCaptureUnmatched;
    const bool thread_fits =
        capture->mode == cudaStreamCaptureModeRelaxed || capture->thread == std::this_thread::get_id();
    if (!thread_fits) return cudaErrorStreamCaptureWrongThread;
    const bool joined = AllBefore(capture->graph, capture->first_node, stream->frontier, capture->dropped);
    EndCapture(capture);
    if (capture->invalidated || !joined) {
      if (capture->owns_graph) DropGraph(capture->graph);
      return capture->invalidated ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined;
    }
    if (capture->owns_graph) AdoptGraph(capture->graph);
    *graph = capture->graph;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  return Api("cudaStreamGetCaptureInfo", [&] {
    const auto stream = FindStream(handle);
    if (!stream || status == nullptr) return cudaErrorInvalidValue;
    const auto capture = CaptureOf(stream);
    *status = cudaStreamCaptureStatusNone;
    if (!capture) return cudaSuccess;
    *status = capture->invalidated ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    if (id != nullptr) *id = capture->id;
    if (graph != nullptr) *graph = capture->graph;
    if (dependencies != nullptr) *dependencies = stream->frontier.data();
    if (edges != nullptr) *edges = nullptr;
    if (count != nullptr) *count = stream->frontier.size();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status);
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t handle, cudaGraphNode_t* dependencies,
                                                const cudaGraphEdgeData*, size_t count, unsigned int flags) {
  return Api("cudaStreamUpdateCaptureDependencies", [&] {
    const auto stream = FindStream(handle);
    if (!stream || flags > cudaStreamSetCaptureDependencies) return cudaErrorInvalidValue;
    const auto capture = CaptureOf(stream);
    if (!capture) return cudaErrorIllegalState;
    for (size_t i = 0; i < count; ++i) {
      if (dependencies[i]->graph != capture->graph) return cudaErrorInvalidValue;
    }
    MutexLock lock(stream->mu);
    std::vector<cudaGraphNode_t>& frontier = stream->frontier;
    if (flags == cudaStreamSetCaptureDependencies) {
      // What is dropped this way need not be joined.
      capture->dropped.insert(capture->dropped.end(), frontier.begin(), frontier.end());
      frontier.clear();
    }
    for (size_t i = 0; i < count; ++i) {
      if (std::find(frontier.begin(), frontier.end(), dependencies[i]) == frontier.end()) {
        frontier.push_back(dependencies[i]);
      }
    }
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return Api("cudaThreadExchangeStreamCaptureMode", [&] {
    if (mode == nullptr) return cudaErrorInvalidValue;
    std::swap(thread_capture_mode, *mode);
    return cudaSuccess;
  });
}
