#include "tests/support/cuda_twin/stream.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>

#include "common/mutex.h"
#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/graph.h"
#include "tests/support/cuda_twin/settings.h"
#include "tests/support/cuda_twin/stream_state.h"

namespace quicksilver::cuda_twin {
namespace {

constexpr size_t kDeferredMax = 64;

struct Streams {
  Mutex mu;
  std::map<CUstream_st*, std::shared_ptr<CUstream_st>> streams;
  std::map<int, std::shared_ptr<CUstream_st>> defaults;  // By device.
  std::set<cudaEvent_t> events;
  std::atomic<bool> deferred{Environment().deferred};
};

Streams& State() {
  static auto* streams = new Streams;
  return *streams;
}

uint64_t EnqueuedOf(CUstream_st& stream) {
  MutexLock lock(stream.mu);
  return stream.enqueued;
}

// The default stream waits for the blocking ones and they for it.
void DrainBefore(const CUstream_st& stream) {
  if (!stream.blocking) return;
  for (const auto& other : AllStreams()) {
    if (other->device != stream.device || other.get() == &stream || !other->blocking) continue;
    if (other->is_default == stream.is_default) continue;
    DrainUpTo(*other, EnqueuedOf(*other));
  }
}

cudaError_t Enqueue(const std::shared_ptr<CUstream_st>& stream, std::function<void()> work, uint64_t* ticket) {
  DrainBefore(*stream);
  uint64_t end = 0;
  uint64_t drain_to = 0;
  {
    MutexLock lock(stream->mu);
    stream->queue.push_back(std::move(work));
    stream->last_user = std::this_thread::get_id();
    end = ++stream->enqueued;
    drain_to = !State().deferred ? end : end > kDeferredMax ? end - kDeferredMax : 0;
  }
  if (ticket != nullptr) *ticket = end;
  DrainUpTo(*stream, drain_to);
  return cudaSuccess;
}

// The default stream would wait for a capturing one: CUDA ends the capture.
cudaError_t CheckImplicit(const CUstream_st& stream) {
  if (!stream.is_default) return cudaSuccess;
  for (const auto& other : AllStreams()) {
    MutexLock lock(other->mu);
    if (other->capture && other->blocking && other->device == stream.device) {
      other->capture->invalidated = true;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  return cudaSuccess;
}

bool DoneAfter(EventRecord& record) { return record.done.load(std::memory_order_acquire); }

cudaError_t CreateStream(cudaStream_t* stream, unsigned int flags) {
  if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
  auto made = std::make_shared<CUstream_st>();
  made->blocking = flags != cudaStreamNonBlocking;
  made->device = CurrentDevice();
  *stream = made.get();
  MutexLock lock(State().mu);
  State().streams[made.get()] = made;
  return cudaSuccess;
}

bool EventLives(cudaEvent_t event) {
  MutexLock lock(State().mu);
  return State().events.contains(event);
}

}  // namespace

std::vector<std::shared_ptr<CUstream_st>> AllStreams() {
  MutexLock lock(State().mu);
  std::vector<std::shared_ptr<CUstream_st>> all;
  for (const auto& [key, stream] : State().streams) all.push_back(stream);
  for (const auto& [key, stream] : State().defaults) all.push_back(stream);
  return all;
}

std::shared_ptr<CUstream_st> FindStream(cudaStream_t stream) {
  MutexLock lock(State().mu);
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    auto& made = State().defaults[CurrentDevice()];
    if (!made) {
      made = std::make_shared<CUstream_st>();
      made->is_default = true;
      made->device = CurrentDevice();
    }
    return made;
  }
  const auto at = State().streams.find(stream);
  return at == State().streams.end() ? nullptr : at->second;
}

void DrainUpTo(CUstream_st& stream, uint64_t ticket) {
  stream.mu.Lock();
  while (stream.done < ticket) {
    if (stream.running) {
      stream.changed.Wait(stream.mu);
      continue;
    }
    std::function<void()> work = std::move(stream.queue.front());
    stream.queue.pop_front();
    stream.running = true;
    stream.mu.Unlock();
    if (BrokenContext() == cudaSuccess) work();
    work = nullptr;
    stream.mu.Lock();
    stream.running = false;
    ++stream.done;
    stream.changed.NotifyAll();
  }
  stream.mu.Unlock();
}

cudaError_t Submit(cudaStream_t handle, cudaGraphNodeType type, std::function<void()> work) {
  const auto stream = FindStream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (const cudaError_t error = CheckImplicit(*stream); error != cudaSuccess) return error;
  if (const auto capture = CaptureOf(stream)) {
    if (capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    MutexLock lock(stream->mu);
    stream->frontier = {AddGraphNode(capture->graph, type, std::move(work), stream->frontier)};
    return cudaSuccess;
  }
  return Enqueue(stream, std::move(work), nullptr);
}

bool IsCapturing(cudaStream_t handle) {
  const auto stream = FindStream(handle);
  return stream && CaptureOf(stream) != nullptr;
}

cudaError_t Drain(cudaStream_t handle) {
  const auto stream = FindStream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (const auto capture = CaptureOf(stream)) {
    capture->invalidated = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  DrainBefore(*stream);
  DrainUpTo(*stream, EnqueuedOf(*stream));
  return BrokenContext();
}

void DrainAllStreams() {
  for (const auto& stream : AllStreams()) {
    uint64_t end = 0;
    {
      MutexLock lock(stream->mu);
      if (stream->last_user == std::this_thread::get_id()) end = stream->enqueued;
    }
    DrainUpTo(*stream, end);
  }
}

void SetDeferred(bool deferred) {
  if (!deferred) DrainAllStreams();
  State().deferred = deferred;
}

size_t StreamsCount() {
  MutexLock lock(State().mu);
  return State().streams.size();
}

size_t EventsCount() {
  MutexLock lock(State().mu);
  return State().events.size();
}

}  // namespace quicksilver::cuda_twin

using namespace quicksilver::cuda_twin;
using quicksilver::MutexLock;

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return Api("cudaStreamCreateWithFlags", [&] { return CreateStream(stream, flags); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return Api("cudaStreamCreateWithPriority", [&] { return CreateStream(stream, flags); });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return Api("cudaStreamDestroy", [&] {
    const auto stream = FindStream(handle);
    if (!stream || stream->is_default) return cudaErrorInvalidResourceHandle;
    if (const auto capture = CaptureOf(stream)) {
      capture->invalidated = true;
      if (capture->origin == stream.get()) {
        EndCapture(capture);
        if (capture->owns_graph) DropGraph(capture->graph);
      }
    }
    DrainUpTo(*stream, EnqueuedOf(*stream));
    MutexLock lock(State().mu);
    State().streams.erase(handle);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return Api("cudaStreamQuery", [&] {
    const auto stream = FindStream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (CaptureOf(stream)) return cudaErrorStreamCaptureUnsupported;
    uint64_t done = 0;
    {
      MutexLock lock(stream->mu);
      if (stream->done == stream->enqueued) return cudaSuccess;
      if (stream->running) return cudaErrorNotReady;
      done = stream->done;
    }
    DrainUpTo(*stream, done + 1);  // Time passes.
    return cudaErrorNotReady;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Api("cudaStreamSynchronize", [&] { return Drain(stream); });
}

cudaError_t cudaDeviceSynchronize() {
  return Api("cudaDeviceSynchronize", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    DrainAllStreams();
    return BrokenContext();
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return Api("cudaLaunchHostFunc", [&] {
    if (function == nullptr) return cudaErrorInvalidValue;
    return Submit(stream, cudaGraphNodeTypeHost, [function, data] { function(data); });
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return Api("cudaEventCreateWithFlags", [&] {
    if (event == nullptr) return cudaErrorInvalidValue;
    *event = new CUevent_st{flags, nullptr};
    MutexLock lock(State().mu);
    State().events.insert(*event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Api("cudaEventDestroy", [&] {
    {
      MutexLock lock(State().mu);
      if (State().events.erase(event) == 0) return cudaErrorInvalidResourceHandle;
    }
    delete event;
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return Api("cudaEventRecord", [&] {
    const auto stream = FindStream(handle);
    if (!stream || !EventLives(event)) return cudaErrorInvalidResourceHandle;
    auto record = std::make_shared<EventRecord>();
    record->stream = stream;
    event->record = record;
    if (const auto capture = CaptureOf(stream)) {
      if (capture->invalidated) return cudaErrorStreamCaptureInvalidated;
      record->capture = capture;
      record->frontier = stream->frontier;
      return cudaSuccess;
    }
    uint64_t ticket = 0;
    {
      MutexLock lock(stream->mu);
      ticket = stream->enqueued + 1;
    }
    record->ticket = ticket;
    return Enqueue(
        stream,
        [weak = std::weak_ptr(record)] {
          if (const auto live = weak.lock()) {
            live->time = std::chrono::steady_clock::now();
            live->done.store(true, std::memory_order_release);
          }
        },
        &ticket);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int) {
  return Api("cudaStreamWaitEvent", [&] {
    const auto stream = FindStream(handle);
    if (!stream || !EventLives(event)) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<EventRecord> record = event->record;
    if (!record) return cudaSuccess;  // Never recorded.
    const auto capture = CaptureOf(stream);
    if (record->capture) {
      if (record->capture->invalidated) return cudaErrorStreamCaptureInvalidated;
      if (capture && capture != record->capture) return cudaErrorStreamCaptureMerge;
      MutexLock lock(stream->mu);
      stream->capture = record->capture;
      for (cudaGraphNode_t node : record->frontier) {
        if (std::find(stream->frontier.begin(), stream->frontier.end(), node) == stream->frontier.end()) {
          stream->frontier.push_back(node);
        }
      }
      return cudaSuccess;
    }
    if (capture) {
      capture->invalidated = true;
      return cudaErrorStreamCaptureIsolation;
    }
    return Enqueue(
        stream, [record] { DrainUpTo(*record->stream, record->ticket); }, nullptr);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Api("cudaEventQuery", [&] {
    if (!EventLives(event)) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<EventRecord> record = event->record;
    if (!record) return cudaSuccess;
    if (record->capture) return cudaErrorCapturedEvent;
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    if (DoneAfter(*record)) return cudaSuccess;
    uint64_t done = 0;
    {
      MutexLock lock(record->stream->mu);
      if (record->stream->running) return cudaErrorNotReady;
      done = record->stream->done;
    }
    DrainUpTo(*record->stream, done + 1);  // Time passes.
    return cudaErrorNotReady;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Api("cudaEventSynchronize", [&] {
    if (!EventLives(event)) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<EventRecord> record = event->record;
    if (!record) return cudaSuccess;
    if (record->capture) return cudaErrorCapturedEvent;
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    DrainUpTo(*record->stream, record->ticket);
    return BrokenContext();
  });
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return Api("cudaEventElapsedTime", [&] {
    if (!EventLives(start) || !EventLives(end)) return cudaErrorInvalidResourceHandle;
    if (((start->flags | end->flags) & cudaEventDisableTiming) != 0) return cudaErrorInvalidResourceHandle;
    if (ms == nullptr || !start->record || !end->record) return cudaErrorInvalidResourceHandle;
    if (!DoneAfter(*start->record) || !DoneAfter(*end->record)) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(end->record->time - start->record->time).count();
    return cudaSuccess;
  });
}
