#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_memory.h"

namespace quicksilver {

/// Copies between pageable host memory and a device in the order of a stream, by way of pinned memory of fixed size:
/// unlike cudaMemcpyAsync it never waits for the device as long as there is room, and never touches the caller's memory
/// behind its back. `stream` outlives this.
class Staging {
 public:
  /// Takes `bytes` of pinned memory, half for each direction.
  static absl::StatusOr<std::unique_ptr<Staging>> Create(cudaStream_t stream, size_t bytes);

  /// `host` has been read on return. Waits when more than three eighths of the memory are under way.
  cudaError_t Upload(const void* host, void* device, size_t bytes);

  /// `host` is written by the Deliver() after the stream has done this.
  cudaError_t Download(const void* device, void* host, size_t bytes);

  /// Hands out what was downloaded. The stream must have done it.
  void Deliver();
  /// Drops it instead.
  void Forget() { deliveries_.clear(), downloaded_ = 0; }

 private:
  static constexpr size_t kParts = 4;  // Of the upload room: the parts behind the current one are under way.

  struct Delivery {
    const void* from;
    void* host;
    size_t bytes;
  };

  Staging(cudaStream_t stream, size_t part_bytes) : stream_(stream), part_bytes_(part_bytes) {}
  cudaError_t NextPart();

  const cudaStream_t stream_;
  const size_t part_bytes_;
  PinnedMemory uploads_;                // [kParts, part_bytes_]
  PinnedMemory downloads_;              // [kParts * part_bytes_]
  std::array<CudaEvent, kParts> left_;  // Behind the last upload from a part.
  CudaEvent downloads_done_;
  size_t part_ = 0;
  size_t part_used_ = 0;
  size_t downloaded_ = 0;
  std::vector<Delivery> deliveries_;
};

/// Waits for an event without blocking in the driver. Returns cudaSuccess or what the device has failed with.
cudaError_t AwaitEvent(cudaEvent_t event);

}  // namespace quicksilver
