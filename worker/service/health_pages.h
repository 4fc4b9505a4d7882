#pragma once

#include <memory>

#include "absl/status/status.h"
#include "common/http/server.h"
#include "worker/metrics.h"
#include "worker/options.h"
#include "worker/service/group_plan.h"
#include "worker/service/worker_server.h"

namespace quicksilver {

/// /metrics, /health, /health/live and /health/ready of the leader, on a port and a thread of their own: they answer
/// while the engine computes or hangs.
class HealthPages {
 public:
  HealthPages(const WorkerOptions& options, const GroupPlan& plan, const WorkerServer& server);
  /// The error names the address that cannot be bound.
  absl::Status Start();

  WorkerMetrics& metrics() { return metrics_; }

 private:
  http::Response Metrics();
  http::Response Live() const;
  http::Response Ready() const;

  const WorkerOptions& options_;
  const WorkerServer& server_;
  WorkerMetrics metrics_;
  std::unique_ptr<http::Server> pages_;
};

}  // namespace quicksilver
