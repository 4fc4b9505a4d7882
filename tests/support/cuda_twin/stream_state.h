#pragma once

#include <atomic>
#include <chrono>

#include "common/mutex.h"
#include "tests/support/cuda_twin/stream.h"

namespace quicksilver::cuda_twin {

/// A capture under way, in all the streams that it has reached.
struct Capture {
  cudaGraph_t graph = nullptr;
  bool owns_graph = false;  ///< Until it is handed out.
  size_t first_node = 0;    ///< Number of nodes before it began.
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  unsigned long long id = 0;
  std::atomic<bool> invalidated{false};
  std::vector<cudaGraphNode_t> dropped;  ///< Need not be joined.
};

/// One cudaEventRecord.
struct EventRecord {
  std::shared_ptr<CUstream_st> stream;
  uint64_t ticket = 0;
  std::chrono::steady_clock::time_point time;
  std::atomic<bool> done{false};
  // In a capture instead.
  std::shared_ptr<Capture> capture;
  std::vector<cudaGraphNode_t> frontier;
};

/// The stream behind a handle, or null when there is none. Null and cudaStreamLegacy are the device's default stream.
std::shared_ptr<CUstream_st> FindStream(cudaStream_t stream);

std::vector<std::shared_ptr<CUstream_st>> AllStreams();

/// The capture that the stream takes part in, or null.
std::shared_ptr<Capture> CaptureOf(const std::shared_ptr<CUstream_st>& stream);

/// Takes the capture off all its streams.
void EndCapture(const std::shared_ptr<Capture>& capture);

/// Does the work up to `ticket` (the count of enqueued works).
void DrainUpTo(CUstream_st& stream, uint64_t ticket);

}  // namespace quicksilver::cuda_twin

struct CUstream_st {
  quicksilver::Mutex mu;
  quicksilver::CondVar changed;
  std::deque<std::function<void()>> queue;
  uint64_t enqueued = 0;
  uint64_t done = 0;
  bool running = false;
  std::thread::id last_user;
  bool blocking = true;  // With the default stream.
  bool is_default = false;
  int device = 0;
  std::shared_ptr<quicksilver::cuda_twin::Capture> capture;
  std::vector<cudaGraphNode_t> frontier;  // What the next captured node depends on.
};

struct CUevent_st {
  unsigned int flags = 0;
  std::shared_ptr<quicksilver::cuda_twin::EventRecord> record;
};
