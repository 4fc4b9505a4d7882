#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// How devices exchange their numbers (--collectives).
enum class CollectivesKind {
  kAuto,      ///< kIpc where every rank reaches every other one's memory, else kNccl.
  kIpc,       ///< Our own kernels over CUDA IPC; refused where ranks do not reach each other.
  kNccl,      ///< NCCL, sums in rank order.
  kNcclFast,  ///< NCCL with sums in its own order: not deterministic.
};

/// "auto", "ipc", "nccl" or "nccl-fast"; anything else: InvalidArgument.
absl::StatusOr<CollectivesKind> ParseCollectivesKind(const std::string& text);

struct DeviceCommunicatorOptions {
  int rank = 0;
  int size = 1;
  CollectivesKind kind = CollectivesKind::kAuto;
  std::string nccl_library;                       ///< Empty: libnccl.so.2.
  absl::Duration timeout = absl::Seconds(5);      ///< Silence after which a rank counts as lost.
  absl::Duration formation = absl::Seconds(120);  ///< How long ranks wait for each other at start.
};

/// The data plane of a group whose ranks compute on CUDA devices, for the current device and `stream`. All ranks take
/// the same decision: each looks which of the others it reaches and tells the rest. FailedPrecondition: kIpc is not
/// possible, naming a pair that keeps it from working.
absl::StatusOr<std::unique_ptr<Communicator>> MakeDeviceCommunicator(const DeviceCommunicatorOptions& options,
                                                                     cudaStream_t stream, ControlChannel& control,
                                                                     RendezvousStore& store);

}  // namespace quicksilver
