#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

class Engine;

/// Where the group stands, as coordinators and probes are told.
struct GroupStatus {
  bool ready = false;    ///< Every rank is there and the group takes sequences.
  bool stalled = false;  ///< Sequences run, but no step has been done for kStallLimit.
  bool draining = false;
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint64_t pages_free = 0;
  uint64_t pages_total = 0;
  uint64_t steps = 0;
  absl::Time last_step = absl::InfinitePast();
  size_t streams = 0;  ///< Coordinators.
};

inline constexpr absl::Duration kStallLimit = absl::Seconds(30);

/// The gRPC services of the leader: Worker for coordinators, and grpc.health.v1 ("" and "readiness": ready; "liveness":
/// not stalled). Serves from Start on: before an engine is attached, coordinators are told that the group is not ready.
class WorkerServer {
 public:
  /// Unavailable, naming the address: it cannot be bound.
  static absl::StatusOr<std::unique_ptr<WorkerServer>> Start(const std::string& listen, const v1::GroupInfo& info);
  virtual ~WorkerServer() = default;

  /// From now on the group is ready. `engine` outlives the server or its DetachEngine.
  virtual void AttachEngine(Engine& engine) = 0;
  virtual void DetachEngine() = 0;
  /// Engine::Report: hands the updates to the coordinator's stream. Never blocks; a coordinator that reads too slowly
  /// loses its stream, and with it its sequences.
  virtual void Report(uint64_t stream, v1::StepResult result) = 0;
  /// Not ready any more, refuses new sequences; running ones go on.
  virtual void BeginDrain() = 0;
  /// Ends all streams after what is queued has been sent, or `grace` has passed.
  virtual void Stop(absl::Duration grace) = 0;
  virtual GroupStatus Status() const = 0;
};

}  // namespace quicksilver
