#pragma once

#include <string>
#include <vector>

#include "common/http/message.h"
#include "coordinator/core/api_error.h"
#include "coordinator/core/generate.h"

namespace quicksilver {

/// The rate headers of serving.md §1.9: none where nothing is limited.
std::vector<http::Header> RateHeaders(const TenantRates& rates);
/// The error body with its retry and rate headers (serving.md §1.8, §1.9).
http::Response ToResponse(const ApiError& error);

/// The bodies of GET /v1/models and GET /v1/models/{id}.
std::string ModelListBody(const std::vector<ModelInfo>& models);
std::string ModelBody(const ModelInfo& model);

/// `application/json`, with or without `charset=utf-8`. Null: the header is missing.
bool IsJsonContentType(const std::string* content_type);

}  // namespace quicksilver
