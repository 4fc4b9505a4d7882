#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collectives/gloo_options.h"
#include "worker/collectives/rendezvous.h"

namespace gloo {
class Context;
namespace transport {
class Buffer;
}
}  // namespace gloo

namespace quicksilver {

/// Ordered messages between every two ranks over gloo's TCP pairs in synchronous mode: the calling thread does the I/O,
/// there is no second thread to wake. One thread at a time, but for Abort(). The first failure closes every connection,
/// so that the failure of one rank reaches all others at once.
class GlooMesh {
 public:
  /// Most bytes of one message: half of a loopback segment, since a message that needs a second, small segment may
  /// wait 40 ms for a delayed acknowledgement. Two meshes that send to each other at the same time never block as long
  /// as the unread messages fit the socket's send buffer (kSocketBufferBytes holds more than three).
  static constexpr size_t kMessageBytesMax = 32 << 10;

  /// Waits for all ranks to come to `store` under the same `name`, at most `formation_timeout`.
  static absl::StatusOr<std::unique_ptr<GlooMesh>> Connect(const GlooOptions& options, const std::string& name,
                                                           RendezvousStore& store, absl::Duration formation_timeout);
  ~GlooMesh();

  int rank() const { return options_.rank; }
  int size() const { return options_.size; }

  /// Where the bytes of the next Send() go: kMessageBytesMax bytes. Free to be overwritten when Send() returns.
  std::byte* outgoing() { return outgoing_.data() + kHeaderBytes; }
  /// Sends the first `bytes` bytes of outgoing(). Internal (CHECK): bytes > kMessageBytesMax.
  absl::Status Send(int peer, size_t bytes);
  /// Waits for the next message of `peer`, which has to have `bytes` bytes, and returns where it lies until the next
  /// Receive from that peer. Unavailable: the peer is gone, or silent for `timeout`. Internal: another size, so the
  /// ranks have diverged.
  absl::StatusOr<const std::byte*> Receive(int peer, size_t bytes, absl::Duration timeout);
  /// The same for a message of any size.
  struct Message {
    const std::byte* data = nullptr;
    size_t bytes = 0;
  };
  absl::StatusOr<Message> ReceiveAny(int peer, absl::Duration timeout);
  /// True when a Receive from `peer` would not wait (a message or the end of the connection is there).
  bool Readable(int peer) const;
  /// Closes every connection: what waits now or later fails with Unavailable. From any thread.
  void Abort();

 private:
  static constexpr size_t kHeaderBytes = 16;  // Sequence number and size; keeps the payload aligned.
  struct Peer;

  GlooMesh(const GlooOptions& options, std::shared_ptr<gloo::Context> context);
  absl::Status Bind(int peer);
  absl::Status WaitReadable(int peer, absl::Duration timeout);
  absl::Status Fail(int peer, const std::string& reason);

  const GlooOptions options_;
  const bool spin_;
  std::shared_ptr<gloo::Context> context_;
  std::vector<std::byte> outgoing_;
  std::vector<std::unique_ptr<Peer>> peers_;  // By rank; the own entry is empty.
  std::atomic<bool> aborted_ = false;
};

}  // namespace quicksilver
