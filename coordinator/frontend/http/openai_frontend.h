#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/http/server.h"
#include "coordinator/frontend/http/openai_request.h"
#include "coordinator/service/inference.h"

namespace quicksilver {

/// What the front end counts. Called on connection threads; thread-safe.
class OpenAiObserver {
 public:
  virtual ~OpenAiObserver() = default;
  /// One request has ended. `route` is a pattern or `unknown`; `code` is 499 when the client went away;
  /// `finish_reason` is that of the first choice, empty when it failed.
  virtual void OnRequest(const std::string& route, int code, const std::string& finish_reason) = 0;
  /// A client closed its connection while its request was in hand.
  virtual void OnClientGone() = 0;
  /// A client was reset because it took nothing for the stall time.
  virtual void OnSlowClient() = 0;
  /// An SDK says that this request is a retry.
  virtual void OnSdkRetry() = 0;
};

struct OpenAiOptions {
  OpenAiLimits limits;
  std::string version;        ///< For GET /version.
  std::string tenant_header;  ///< Of the tenant's name, in lower case. Empty: all are one tenant.
  absl::Duration ping_interval = absl::Seconds(15);
  size_t stream_budget_bytes = 256 * 1024;
  absl::Duration canvas_interval = absl::Milliseconds(50);
};

/// The OpenAI-compatible routes (serving.md §1, §6.5) over Inference; the health routes alone for a second port.
/// `inference` and `observer` outlive it, and it outlives the servers it is registered with.
class OpenAiFrontend {
 public:
  OpenAiFrontend(Inference& inference, OpenAiOptions options, OpenAiObserver& observer);

  /// The headers that every reply of the API port carries, and who counts its refusals.
  void Configure(http::ServerOptions& options) const;
  /// All routes, /openai/v1/* included, and the health routes.
  void Register(http::Server& server);
  /// /health, /health/live, /health/ready, /ping and /version.
  void RegisterHealth(http::Server& server) const;

 private:
  std::optional<ApiError> SetTenant(const http::Request& request, OpenAiRequest& parsed) const;
  void RegisterUnder(const std::string& base, http::Server& server);
  void Serve(OpenAiEndpoint endpoint, const std::string& route, http::Request request,
             const std::shared_ptr<http::Exchange>& exchange);
  http::Response Model(const std::string& id) const;
  http::Response Readiness() const;
  http::Response Counted(const std::string& route, http::Response response) const;

  Inference& inference_;
  const OpenAiOptions options_;
  OpenAiObserver& observer_;
};

}  // namespace quicksilver
