#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <variant>

#include "coordinator/core/generate.h"
#include "quicksilver/v1/inference.pb.h"

namespace quicksilver {

struct GrpcLimits {
  uint32_t choices_max = 8;
  int messages_max = 2048;
  int stops_max = 4;
  uint32_t top_k_max = 256;
};

/// The wire's request in the service's terms, or what is wrong with it; `param` is the path of the field.
std::variant<GenerateRequest, ApiError> FromProto(const v1::GenerateRequest& proto, const GrpcLimits& limits);

/// serving.md §3.1.
grpc::StatusCode GrpcCode(const ApiError& error);
/// With ErrorInfo and RequestInfo, and BadRequest, RetryInfo or QuotaFailure where they say something.
grpc::Status ToStatus(const ApiError& error, const std::string& request_id, const std::string& tenant);

v1::GenerateEvent ToProto(const StartedEvent& event, const std::string& request_id);
v1::GenerateEvent ToProto(const DeltaEvent& event);
v1::GenerateEvent ToProto(const FrameEvent& event);
v1::GenerateEvent ToProto(const FinishedEvent& event);
v1::Model ToProto(const ModelInfo& info);

/// What may be echoed as x-request-id.
bool IsRequestId(const std::string& id);

}  // namespace quicksilver
