#include "worker/service/health_pages.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/host_port.h"
#include "common/metrics.h"

namespace quicksilver {
namespace {

http::ServerOptions PageOptions(const std::string& listen) {
  const HostPort address = *ParseHostPort("--metrics-listen", listen);  // Checked with the other options.
  http::ServerOptions options;
  options.address = address.host;
  options.port = address.port;
  return options;
}

http::Response Answer(int status, const std::string& word) {
  http::Response response;
  response.status = status;
  response.body = absl::StrCat("{\"status\":\"", word, "\"}");
  return response;
}

}  // namespace

HealthPages::HealthPages(const WorkerOptions& options, const GroupPlan& plan, const WorkerServer& server)
    : options_(options),
      server_(server),
      metrics_(options.served_model_name, options.group_name, plan.page_size, static_cast<uint64_t>(plan.pages)),
      pages_(std::make_unique<http::Server>(PageOptions(options.metrics_listen))) {
  pages_->Route("GET", "/metrics", [this](const http::Request&) { return Metrics(); });
  pages_->Route("GET", "/health", [this](const http::Request&) { return Ready(); });
  pages_->Route("GET", "/health/ready", [this](const http::Request&) { return Ready(); });
  pages_->Route("GET", "/health/live", [this](const http::Request&) { return Live(); });
}

absl::Status HealthPages::Start() { return pages_->Start(); }

http::Response HealthPages::Metrics() {
  const GroupStatus status = server_.Status();
  WorkerReading reading;
  reading.up = status.ready;
  // The ranks of a group live and die together: a group that is not ready has its leader alone to show.
  reading.ranks = status.ready || status.draining ? options_.tensor_parallel_size : 1;
  reading.ranks_desired = options_.tensor_parallel_size;
  reading.epoch = options_.epoch;
  reading.restarts = options_.restarts;
  reading.load = status.load;
  http::Response response;
  response.content_type = kMetricsContentType;
  response.body = metrics_.Render(reading);
  return response;
}

http::Response HealthPages::Live() const {
  return server_.Status().stalled ? Answer(503, "stalled") : Answer(200, "ok");
}

http::Response HealthPages::Ready() const {
  const GroupStatus status = server_.Status();
  if (status.ready) return Answer(200, "ok");
  return Answer(503, status.draining ? "draining" : "forming");
}

}  // namespace quicksilver
