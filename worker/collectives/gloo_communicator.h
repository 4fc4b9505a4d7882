#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/gloo_options.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// The data plane over TCP, for matrices in host memory (f32, bf16). Runs at once, in the calling thread. Waits until
/// all ranks have come to `store`, at most `formation_timeout`. Unavailable: they did not.
absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(const GlooOptions& options, RendezvousStore& store,
                                                                   absl::Duration formation_timeout);

}  // namespace quicksilver
