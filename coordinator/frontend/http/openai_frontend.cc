#include "coordinator/frontend/http/openai_frontend.h"

#include <utility>

#include "common/http/random_id.h"
#include "coordinator/frontend/http/openai_generation.h"
#include "coordinator/frontend/http/openai_reply.h"
#include "coordinator/frontend/tenant_name.h"

namespace quicksilver {
namespace {

constexpr char kUnknownRoute[] = "unknown";

// Known to clients of the API, not delivered yet (serving.md §10).
constexpr const char* kUndelivered[] = {"/responses", "/decisions", "/systemone", "/apply/completions",
                                        "/edit/completions"};

http::Response UnsupportedMediaType(const char* header) {
  return http::ErrorResponse(415, "invalid_request_error", "unsupported_media_type",
                             std::string("The ") + header + " of the request is not supported; send application/json.");
}

// Nothing when the body may be parsed.
bool HasForeignEncoding(const http::Request& request) {
  const std::string* encoding = request.Find("content-encoding");
  return encoding != nullptr && *encoding != "identity";
}

}  // namespace

OpenAiFrontend::OpenAiFrontend(Inference& inference, OpenAiOptions options, OpenAiObserver& observer)
    : inference_(inference), options_(std::move(options)), observer_(observer) {}

void OpenAiFrontend::Configure(http::ServerOptions& options) const {
  options.common_headers += "openai-version: 2020-10-01\r\n";
  options.elapsed_ms_header = "openai-processing-ms";
  options.on_refusal = [this](int status) { observer_.OnRequest(kUnknownRoute, status, ""); };
}

void OpenAiFrontend::Register(http::Server& server) {
  RegisterHealth(server);
  RegisterUnder("/v1", server);
  RegisterUnder("/openai/v1", server);
  for (const char* route : {"/tokenize", "/detokenize"}) {
    server.Route("POST", route, [this, route](const http::Request&) {
      return Counted(route, ToResponse(NotImplementedError("", std::string(route) + " is not implemented.")));
    });
  }
}

void OpenAiFrontend::RegisterUnder(const std::string& base, http::Server& server) {
  const auto serve = [this, &server, &base](const char* path, OpenAiEndpoint endpoint) {
    server.RouteAsync("POST", base + path,
                      [this, endpoint, route = std::string("/v1") + path](
                          http::Request request, const std::shared_ptr<http::Exchange>& exchange) {
                        Serve(endpoint, route, std::move(request), exchange);
                      });
  };
  serve("/chat/completions", OpenAiEndpoint::kChat);
  serve("/completions", OpenAiEndpoint::kCompletions);
  serve("/fim/completions", OpenAiEndpoint::kFim);
  server.Route("GET", base + "/models", [this](const http::Request&) {
    http::Response response;
    response.body = ModelListBody(inference_.Models());
    return Counted("/v1/models", std::move(response));
  });
  server.Route("GET", base + "/models/*",
               [this](const http::Request& request) { return Counted("/v1/models/{id}", Model(request.rest)); });
  for (const char* path : kUndelivered) {
    const std::string route = std::string("/v1") + path;
    server.Route("POST", base + path, [this, route](const http::Request&) {
      return Counted(route, ToResponse(NotImplementedError("", route + " is not implemented.")));
    });
  }
}

void OpenAiFrontend::RegisterHealth(http::Server& server) const {
  const auto ready = [this](const http::Request&) { return Readiness(); };
  server.Route("GET", "/health", ready);
  server.Route("GET", "/health/ready", ready);
  server.Route("GET", "/health/live", [](const http::Request&) {
    http::Response response;
    response.body = "{\"status\":\"ok\"}";
    return response;
  });
  // SageMaker wants an empty body (serving.md §6.1).
  server.Route("GET", "/ping", [this](const http::Request&) {
    http::Response response = Readiness();
    if (response.status == 200) response.body.clear();
    return response;
  });
  server.Route("GET", "/version", [this](const http::Request&) {
    http::Response response;
    response.body = "{\"version\":";
    http::AppendJsonString(options_.version, response.body);
    response.body += '}';
    return response;
  });
}

http::Response OpenAiFrontend::Readiness() const {
  if (const std::optional<ApiError> reason = inference_.NotReady()) return ToResponse(*reason);
  http::Response response;
  response.body = "{\"status\":\"ok\"}";
  return response;
}

http::Response OpenAiFrontend::Model(const std::string& id) const {
  for (const ModelInfo& model : inference_.Models()) {
    if (model.id != id) continue;
    http::Response response;
    response.body = ModelBody(model);
    return response;
  }
  return ToResponse(ModelNotFound(id));
}

http::Response OpenAiFrontend::Counted(const std::string& route, http::Response response) const {
  observer_.OnRequest(route, response.status, "");
  return response;
}

std::optional<ApiError> OpenAiFrontend::SetTenant(const http::Request& request, OpenAiRequest& parsed) const {
  if (options_.tenant_header.empty()) return std::nullopt;
  std::vector<std::string> values;
  for (const http::Header& header : request.headers) {
    if (header.name == options_.tenant_header) values.push_back(header.value);
  }
  const std::variant<std::string, ApiError> tenant = TenantName(options_.tenant_header, values);
  if (const auto* error = std::get_if<ApiError>(&tenant)) return *error;
  for (GenerateRequest& generation : parsed.generations) generation.tenant = std::get<std::string>(tenant);
  return std::nullopt;
}

void OpenAiFrontend::Serve(OpenAiEndpoint endpoint, const std::string& route, http::Request request,
                           const std::shared_ptr<http::Exchange>& exchange) {
  const std::string* retries = request.Find("x-stainless-retry-count");
  if (retries != nullptr && *retries != "0") observer_.OnSdkRetry();
  if (!IsJsonContentType(request.Find("content-type"))) {
    return exchange->Reply(Counted(route, UnsupportedMediaType("Content-Type")));
  }
  if (HasForeignEncoding(request)) return exchange->Reply(Counted(route, UnsupportedMediaType("Content-Encoding")));
  std::variant<OpenAiRequest, ApiError> parsed = ParseOpenAiRequest(request.body, endpoint, options_.limits);
  if (const ApiError* error = std::get_if<ApiError>(&parsed)) {
    return exchange->Reply(Counted(route, ToResponse(*error)));
  }
  if (const auto error = SetTenant(request, std::get<OpenAiRequest>(parsed))) {
    return exchange->Reply(Counted(route, ToResponse(*error)));
  }
  request.body.clear();
  request.body.shrink_to_fit();
  const auto generation = std::make_shared<OpenAiGeneration>(
      std::move(std::get<OpenAiRequest>(parsed)),
      (endpoint == OpenAiEndpoint::kChat ? "chatcmpl-" : "cmpl-") + http::RandomHex(16), route, options_, observer_,
      exchange);
  generation->Start(inference_);
}

}  // namespace quicksilver
