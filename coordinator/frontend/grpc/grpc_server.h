#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/frontend/grpc/convert.h"
#include "coordinator/metrics.h"
#include "coordinator/service/inference.h"

namespace quicksilver {

struct GrpcServerOptions {
  std::string listen = "127.0.0.1:8081";  ///< Port 0: any free one.
  bool reflection = false;                ///< It discloses the schema.
  GrpcLimits limits;
  std::string tenant_header;  ///< Metadata key of the tenant's name, in lower case. Empty: all are one tenant.
  absl::Duration write_stall_timeout = absl::Seconds(30);
  absl::Duration health_interval = absl::Milliseconds(100);  ///< How often readiness is asked for.
};

/// The gRPC front door: quicksilver.v1.Inference, health ("" and "readiness" follow Inference::NotReady(), "liveness"
/// is true while the process serves) and reflection.
class GrpcServer {
 public:
  /// Binds and serves. Unavailable, naming the address, when that cannot be bound. `inference` and `metrics` outlive
  /// the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options, Inference& inference,
                                                           Metrics& metrics);
  /// Cuts off what still runs.
  virtual ~GrpcServer() = default;
  virtual int port() const = 0;
  /// Tells the health watchers at once what NotReady() says now.
  virtual void UpdateHealth() = 0;
  /// Accepts no more calls; returns when those that run have ended or `timeout` has passed, and cuts the rest off.
  virtual void Stop(absl::Duration timeout) = 0;
};

}  // namespace quicksilver
