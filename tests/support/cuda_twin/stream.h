#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

/// Runs `work` in the stream's order, or adds it to the graph that the stream captures.
cudaError_t Submit(cudaStream_t stream, cudaGraphNodeType type, std::function<void()> work);

/// Whether submitted work only becomes part of a graph. False for a stream that does not exist.
bool IsCapturing(cudaStream_t stream);

/// Does the work that waits in the stream.
cudaError_t Drain(cudaStream_t stream);

/// Does the work that this OS thread has enqueued in any stream.
void DrainAllStreams();

/// For calls that must not be made while a capture of this thread (or a global one) is under way: they end it.
cudaError_t CheckNoCapture();

/// Whether a capture that this thread has begun is under way.
bool ThisThreadCaptures();

void SetDeferred(bool deferred);
size_t StreamsCount();
size_t EventsCount();

}  // namespace quicksilver::cuda_twin
