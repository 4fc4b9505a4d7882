#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/gloo_options.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// Largest message of a Broadcast.
inline constexpr size_t kControlMessageBytesMax = 64 << 20;

/// The control channel over TCP; rank 0 leads. Followers acknowledge each message, and the leader looks at the
/// acknowledgements when it sends the next one: a follower that is silent for `timeout`, less one beat of a second, is
/// lost, so that a stopped follower of an idle group is noticed within `timeout`. A dead one is noticed at the next
/// Broadcast.
absl::StatusOr<std::unique_ptr<ControlChannel>> MakeGlooControlChannel(const GlooOptions& options,
                                                                       RendezvousStore& store,
                                                                       absl::Duration formation_timeout);

}  // namespace quicksilver
