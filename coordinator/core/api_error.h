#pragma once

#include <string>
#include <utility>

#include "coordinator/core/rates.h"

namespace quicksilver {

/// What went wrong, as clients are told (serving.md §1.8). One value for both front ends: HTTP prints it as the error
/// body, gRPC as a status with ErrorInfo and RequestInfo.
struct ApiError {
  int http_status = 500;
  std::string type = "server_error";  ///< E.g. "invalid_request_error".
  std::string code = "internal_error";
  std::string message;
  std::string param;              ///< Empty: null.
  int retry_after_seconds = 0;    ///< 0: no Retry-After.
  bool should_not_retry = false;  ///< Sends x-should-retry: false.
  TenantRates rates = {};         ///< For the rate headers.
};

inline ApiError InvalidRequest(std::string code, std::string param, std::string message) {
  return {400, "invalid_request_error", std::move(code), std::move(message), std::move(param), 0, false};
}

inline ApiError NotImplementedError(std::string param, std::string message) {
  return {501, "server_error", "not_implemented", std::move(message), std::move(param), 0, true};
}

inline ApiError NoReadyWorker(std::string message) {
  return {503, "service_unavailable_error", "no_ready_worker", std::move(message), "", 2, false};
}

inline ApiError Overloaded(std::string message, int retry_after_seconds) {
  return {503, "service_unavailable_error", "server_is_overloaded", std::move(message), "", retry_after_seconds, false};
}

/// The tenant is over its own limit (serving.md §1.8).
inline ApiError RateLimited(std::string message, int retry_after_seconds) {
  return {429, "rate_limit_error", "rate_limit_exceeded", std::move(message), "", retry_after_seconds, false};
}

inline ApiError InsufficientQuota(std::string message, int retry_after_seconds) {
  return {429, "insufficient_quota", "insufficient_quota", std::move(message), "", retry_after_seconds, true};
}

inline ApiError ShuttingDown() {
  return {503, "service_unavailable_error", "shutting_down", "The server is shutting down.", "", 2, false};
}

inline ApiError WorkerLost() {
  return {500, "server_error", "worker_lost", "The worker group that ran this request was lost.", "", 0, false};
}

/// A group that went on with a request disagrees with what its client has seen.
inline ApiError ResumeDivergence() {
  return {500, "server_error", "resume_divergence", "The answer could not be continued as it began.", "", 0, false};
}

inline ApiError DeadlineExceeded() {
  return {504, "server_error", "deadline_exceeded", "The deadline of this request has passed.", "", 0, true};
}

inline ApiError ModelNotFound(const std::string& model) {
  return {404,  "invalid_request_error", "model_not_found", "The model `" + model + "` does not exist.", "model", 0,
          false};
}

inline ApiError InternalError(std::string code, std::string message) {
  return {500, "server_error", std::move(code), std::move(message), "", 0, false};
}

}  // namespace quicksilver
