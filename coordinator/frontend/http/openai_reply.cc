#include "coordinator/frontend/http/openai_reply.h"

#include <algorithm>
#include <ctime>
#include <string_view>
#include <utility>

namespace quicksilver {
namespace {

std::string Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return "";
  std::string out(text.substr(begin, text.find_last_not_of(" \t") - begin + 1));
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return out;
}

std::string Date(int64_t unix_seconds) {
  const std::time_t seconds = static_cast<std::time_t>(unix_seconds);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%d", &utc));
}

// As Go prints durations: 12ms, 1s, 6m0s, 1h2m3s. Rounded up.
std::string GoDuration(absl::Duration duration) {
  if (duration <= absl::ZeroDuration()) return "0s";
  if (duration < absl::Seconds(1))
    return std::to_string(absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1)))) + "ms";
  const int64_t seconds = absl::ToInt64Seconds(absl::Ceil(duration, absl::Seconds(1)));
  std::string text = std::to_string(seconds % 60) + "s";
  if (seconds >= 60) text = std::to_string(seconds / 60 % 60) + "m" + text;
  if (seconds >= 3600) text = std::to_string(seconds / 3600) + "h" + text;
  return text;
}

void AddRate(const std::string& what, const std::optional<RateStatus>& rate, std::vector<http::Header>& headers) {
  if (!rate) return;
  headers.push_back({"x-ratelimit-limit-" + what, std::to_string(rate->limit)});
  headers.push_back({"x-ratelimit-remaining-" + what, std::to_string(rate->remaining)});
  headers.push_back({"x-ratelimit-reset-" + what, GoDuration(rate->reset)});
}

}  // namespace

std::vector<http::Header> RateHeaders(const TenantRates& rates) {
  std::vector<http::Header> headers;
  AddRate("requests", rates.requests, headers);
  AddRate("tokens", rates.tokens, headers);
  return headers;
}

http::Response ToResponse(const ApiError& error) {
  http::Response response = http::ErrorResponse(error.http_status, error.type, error.code, error.message, error.param);
  const bool busy = error.http_status == 429 || error.http_status == 503;
  if (busy || error.retry_after_seconds > 0) {
    response.headers.push_back({"retry-after", std::to_string(std::max(1, error.retry_after_seconds))});
  }
  if (error.should_not_retry) response.headers.push_back({"x-should-retry", "false"});
  for (http::Header& header : RateHeaders(error.rates)) response.headers.push_back(std::move(header));
  return response;
}

std::string ModelBody(const ModelInfo& model) {
  std::string out = "{\"id\":";
  http::AppendJsonString(model.id, out);
  out += ",\"object\":\"model\",\"created\":" + std::to_string(model.created) +
         ",\"owned_by\":\"organization\",\"max_model_len\":" + std::to_string(model.max_model_len) +
         ",\"quicksilver\":{\"family\":";
  http::AppendJsonString(model.family, out);
  out += ",\"policies\":[";
  for (size_t i = 0; i < model.policies.size(); ++i) {
    out += i > 0 ? "," : "";
    http::AppendJsonString(model.policies[i], out);
  }
  out += std::string("],\"infill\":") + (model.infill ? "true" : "false") + "}}";
  return out;
}

std::string ModelListBody(const std::vector<ModelInfo>& models) {
  std::string data, named;
  for (const ModelInfo& model : models) {
    if (!data.empty()) data += ',', named += ',';
    data += ModelBody(model);
    named += "{\"name\":";
    http::AppendJsonString(model.id, named);
    named += ",\"description\":\"\",\"release_date\":\"" + Date(model.created) + "\"}";
  }
  return "{\"object\":\"list\",\"data\":[" + data + "],\"models\":[" + named + "]}";
}

bool IsJsonContentType(const std::string* content_type) {
  if (content_type == nullptr) return false;
  const std::string_view text = *content_type;
  const size_t semicolon = std::min(text.find(';'), text.size());
  if (Trimmed(text.substr(0, semicolon)) != "application/json") return false;
  if (semicolon == text.size()) return true;
  const std::string parameter = Trimmed(text.substr(semicolon + 1));
  return parameter.empty() || parameter == "charset=utf-8" || parameter == "charset=\"utf-8\"";
}

}  // namespace quicksilver
