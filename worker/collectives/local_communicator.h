#pragma once

#include <memory>

#include "worker/collectives/communicator.h"

namespace quicksilver {

/// The communicator of a group of one rank: sums and gathers are the identity. `AllGather` copies within host or, where
/// the two pointers are equal, does nothing; a device backend brings its own. Synchronize() fails only after Abort().
std::unique_ptr<Communicator> MakeLocalCommunicator();

/// The control channel of a group of one rank: returns what it is given, never waits.
std::unique_ptr<ControlChannel> MakeLocalControlChannel();

}  // namespace quicksilver
