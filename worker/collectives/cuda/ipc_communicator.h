#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

struct IpcOptions {
  int rank = 0;
  int size = 1;                                     ///< At most kExchangeRanksMax.
  absl::Duration timeout = absl::Seconds(5);        ///< How long a kernel waits for a peer.
  absl::Duration step_timeout = absl::Seconds(60);  ///< How long Synchronize() waits for all of the stream's work.
  std::optional<size_t> two_shot_bytes_min;         ///< Of a message; not set: by the number of ranks.
};

/// The data plane between devices of one host that reach each other's memory (kernels/cuda/all_reduce.h), for matrices
/// in device memory (f32, bf16), on the current device and on `stream`, whose owner outlives this. Sums are in rank
/// order whatever the size. Operations may be captured in a graph and replayed; a replayed one fails as any other when
/// its peers do not come. A rank that waits in vain gives up by itself: nothing hangs, whatever the host does. Two
/// ranks may share a device, as threads or as processes. Failures: Unavailable, or Internal when the ranks have
/// diverged. All ranks have to come to `store` within `formation_timeout`.
absl::StatusOr<std::unique_ptr<Communicator>> MakeIpcCommunicator(const IpcOptions& options, cudaStream_t stream,
                                                                  RendezvousStore& store,
                                                                  absl::Duration formation_timeout);

}  // namespace quicksilver
