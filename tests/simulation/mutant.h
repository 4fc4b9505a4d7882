#pragma once

namespace quicksilver::simulation {

/// A bug that is planted in the simulated shells, to see that it is found. Production code knows nothing of them.
enum class Mutant {
  kNone,
  kLoseFinalToken,    ///< A commit is dropped before it is recorded.
  kFinishTwice,       ///< A client's cancel ends the request for the client, but not in the coordinator.
  kLeakPages,         ///< A cancelled sequence is not removed from the scheduler.
  kStarveTenant,      ///< One tenant's requests count as one tenant's, everybody else's each as a tenant of its own.
  kAcceptStaleEpoch,  ///< What a group that was given up says is taken as if it came from the one that goes on.
  kForgetBlockStep,   ///< A resume begins the open block's schedule anew.
  kSharePrefixes,     ///< Pages are shared over tenants.
  kShareUnsound,      ///< Pages of a sequence whose logits were not finite stay shared.
  kIgnoreDeadline,    ///< Deadlines reach neither dispatcher nor worker.
};

}  // namespace quicksilver::simulation
