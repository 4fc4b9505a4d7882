#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// The data plane of one rank of a group: operations on device memory, enqueued in order with the rank's Ops. Every
/// rank calls the same operations with the same sizes in the same order. The first failure (a dead or silent peer)
/// sticks and comes out of Synchronize(); afterwards the communicator is useless and the group has to be formed anew.
/// Not thread-safe but for Abort().
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// In place: x = x_0 + x_1 + … + x_(tp-1), added in rank order in float, so all ranks hold the same bits and a row's
  /// bits do not depend on where it stands or on how many rows there are. x: [N, cols], dense (stride = cols).
  virtual void AllReduceSum(Matrix x) = 0;

  /// False when the above does not hold, because a library adds in an order of its own: then a request's bytes depend
  /// on what shares its batch, and the group's fingerprint has to say so.
  virtual bool deterministic() const { return true; }

  /// out = the `bytes` of every rank, in rank order: [tp * bytes].
  virtual void AllGather(const void* in, void* out, size_t bytes) = 0;

  /// Waits, bounded by the communicator's timeout, until all enqueued work is done: the rank's other work on the device
  /// too. To be called before Ops::Synchronize(), whose wait for an operation that waits for a dead peer has no bound.
  virtual absl::Status Synchronize() = 0;

  /// The first failure that is known by now. Does not wait: where operations run behind the host's back this must be
  /// overridden.
  virtual absl::Status status() { return Synchronize(); }

  /// False where recorded operations must not stand in a loop (Ops::Record with `proceed`).
  virtual bool repeats() const { return true; }

  /// Makes pending and later operations fail soon on this rank. From any thread.
  virtual void Abort() = 0;

  /// `release` has to destroy every Program that has recorded operations of this communicator: they hold it, and an
  /// abort would wait for them for ever. Called at most once, by the thread that aborts or notices a failure, at the
  /// latest at this object's end; it must not call the communicator. nullptr takes it back, before its owner ends.
  virtual void BeforeAbort(std::function<void()> release) { static_cast<void>(release); }
};

/// The control plane: small messages in host memory from the leader to all ranks. Followers wait in Broadcast; the
/// leader beats at least once a second, so a wait of `timeout` without a message means that the leader is gone.
class ControlChannel {
 public:
  virtual ~ControlChannel() = default;
  /// On the leader sends `message` and returns it; on the others returns what the leader sent.
  /// Unavailable: a peer is gone or silent for `timeout`.
  virtual absl::StatusOr<std::string> Broadcast(std::string message, absl::Duration timeout) = 0;
  /// Waits for every rank. Unavailable as above.
  virtual absl::Status Barrier(absl::Duration timeout) = 0;
};

}  // namespace quicksilver
