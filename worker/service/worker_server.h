#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/engine/engine.h"

namespace quicksilver {

/// Where the group stands, as coordinators and probes are told.
struct GroupStatus {
  bool ready = false;    ///< Every rank is there and the group takes sequences.
  bool stalled = false;  ///< There are sequences, but no step has been done for kStallLimit.
  bool draining = false;
  EngineLoad load;     ///< All pages free and nothing running while there is no engine.
  size_t streams = 0;  ///< Coordinators.
};

inline constexpr absl::Duration kStallLimit = absl::Seconds(30);
/// So long a draining group still takes sequences: coordinators that have not heard of it must not see them refused.
inline constexpr absl::Duration kLameDuck = absl::Seconds(2);

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
  /// Not ready any more, and coordinators are told at once, so that they move what runs here; refuses new sequences
  /// after kLameDuck. Running ones go on.
  virtual void BeginDrain() = 0;
  /// Ends all streams after what is queued has been sent, or `grace` has passed.
  virtual void Stop(absl::Duration grace) = 0;
  virtual GroupStatus Status() const = 0;
};

}  // namespace quicksilver
