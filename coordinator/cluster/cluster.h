#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/cluster/discovery.h"
#include "coordinator/core/ids.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

struct ClusterOptions {
  DiscoveryOptions discovery;
  size_t groups_max = 4096;  ///< Addresses beyond so many are left out.
  std::string coordinator;   ///< Our name in the workers' logs.
  absl::Duration hello_timeout = absl::Seconds(5);
  absl::Duration backoff_min = absl::Milliseconds(200);  ///< Between streams to one group; doubles, with jitter.
  absl::Duration backoff_max = absl::Seconds(1);         ///< After a broken stream: a re-formed group is soon found.
  absl::Duration refused_backoff_max = absl::Seconds(5);
};

/// What groups say. Called in order for one connection, on threads that must not be blocked, with no lock held.
class GroupListener {
 public:
  virtual ~GroupListener() = default;
  /// The group at `address` is known from now on. Comes before anything else about it.
  virtual void OnGroupAdded(GroupId group, const std::string& address) = 0;
  /// It is in no list any more and its stream is over: nothing comes about it afterwards, and its id is not used again.
  virtual void OnGroupRemoved(GroupId group) = 0;
  /// A stream to the group began. Not OK: the group is refused, and asked again later.
  virtual absl::Status OnGroupInfo(Connection connection, const v1::GroupInfo& info) = 0;
  virtual void OnHeartbeat(Connection connection, const v1::Heartbeat& heartbeat) = 0;
  virtual void OnStepResult(Connection connection, const v1::StepResult& result) = 0;
  /// The stream of an accepted group ended, other than by Drop(). Nothing comes from this connection afterwards.
  virtual void OnGroupLost(Connection connection, const std::string& reason) = 0;
};

/// Keeps one stream to every group that discovery finds and dials again when it breaks. A group that is found no more
/// is not dialled again, but its stream goes on until it breaks. Thread-safe.
class Cluster {
 public:
  /// Returns at once. `listener` outlives the cluster.
  static std::unique_ptr<Cluster> Start(const ClusterOptions& options, GroupListener& listener);
  /// Stops.
  virtual ~Cluster() = default;
  /// Breaks all streams and waits for the listener, which may use this all the while; it is not called afterwards, and
  /// nothing is sent. The second call does nothing.
  virtual void Stop() = 0;

  /// Appends to what goes out on this connection; drops it when the connection is an old one. Only takes a lock: may be
  /// called under the caller's own one, which keeps the order of messages that of decisions.
  virtual void Enqueue(Connection connection, std::unique_ptr<v1::CoordinatorMessage> message) = 0;
  /// Sends what was enqueued.
  virtual void Flush(Connection connection) = 0;
  /// Breaks the stream of a group that is given up. Its later words are ignored.
  virtual void Drop(Connection connection) = 0;
};

}  // namespace quicksilver
