#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/rendezvous.h"
#include "worker/options.h"

namespace quicksilver {

// The CUDA backend as the service sees it: in builds without it every call fails with FailedPrecondition.

struct CudaDeviceFacts {
  std::string name;
  int64_t memory_bytes = 0;
};

/// True in builds with the CUDA backend.
bool HasCudaBackend();

/// Looks at a device without opening it. FailedPrecondition, saying what was found and what is needed.
absl::StatusOr<CudaDeviceFacts> InspectCudaDevice(int32_t ordinal);

struct CudaRankOptions {
  int32_t device = 0;
  DType activations = DType::kBf16;
  bool fp8_layers = false;
  bool deterministic = false;
  bool kernel_overlap = true;
};
absl::StatusOr<std::unique_ptr<Ops>> OpenCudaRank(const CudaRankOptions& options);

/// The data plane between the ranks' devices, in order with the operations of `ops`, which OpenCudaRank() has made.
absl::StatusOr<std::unique_ptr<Communicator>> MakeCudaCommunicator(const WorkerOptions& options, Ops& ops,
                                                                   ControlChannel& control, RendezvousStore& store);

}  // namespace quicksilver
