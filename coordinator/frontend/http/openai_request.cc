#include "coordinator/frontend/http/openai_request.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "common/json.h"
#include "coordinator/frontend/http/json_fields.h"
#include "coordinator/frontend/http/openai_extension.h"
#include "coordinator/frontend/http/openai_messages.h"
#include "coordinator/frontend/http/openai_sampling.h"
#include "coordinator/frontend/http/openai_unsupported.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr double kTemperatureMax = 2;
constexpr uint32_t kCompletionTokensDefault = 16;
// Mercury's edit family (serving.md §2.4).
constexpr double kFimTemperatureMax = 1;
constexpr uint32_t kFimTokensDefault = 512;
constexpr int64_t kFimTokensMax = 8192;

uint32_t Clamped(int64_t value) { return static_cast<uint32_t>(std::min<int64_t>(value, UINT32_MAX)); }

void ReadStreaming(JsonFields& fields, std::optional<ApiError>& error, OpenAiRequest& request) {
  request.stream = fields.Bool("stream").value_or(false);
  const json* options = fields.FindObject("stream_options");
  if (options == nullptr) return;
  if (!request.stream) fields.FailValue("stream_options", "it is only allowed when `stream` is true");
  JsonFields nested(*options, "stream_options.", error);
  request.include_usage = nested.Bool("include_usage").value_or(false);
  nested.Bool("include_obfuscation");
}

// Whom it goes before. `scale` buys throughput elsewhere; here it is the default.
void ReadScheduling(JsonFields& fields, OpenAiRequest& request, GenerateRequest& generation) {
  const auto tier = fields.OneOf("service_tier", {"auto", "default", "flex", "scale", "priority", "fast"});
  request.names_service_tier = tier.has_value();
  const bool realtime = fields.Bool("realtime").value_or(false);
  if (tier == "flex") generation.priority = Priority::kBatch;
  if (tier == "priority" || tier == "fast" || realtime) {
    generation.priority = Priority::kInteractive;
    request.service_tier = "priority";
  }
  generation.cache_key = fields.String("prompt_cache_key").value_or("");
  if (generation.cache_key.size() > kCacheKeyBytesMax) {
    fields.FailValue("prompt_cache_key", "expected at most " + std::to_string(kCacheKeyBytesMax) + " bytes, got " +
                                             std::to_string(generation.cache_key.size()));
  }
}

void ReadDiffusing(JsonFields& fields, OpenAiRequest& request, const GenerateRequest& generation) {
  request.diffusing = fields.Bool("diffusing").value_or(false);
  if (!request.diffusing) return;
  if (!request.stream) fields.FailValue("diffusing", "it is only allowed when `stream` is true");
  if (generation.choices > 1) fields.FailValue("diffusing", "it is only allowed when `n` is 1");
  if (const json* tools = fields.Find("tools"); tools != nullptr && !tools->empty()) {
    fields.FailValue("diffusing", "it is not allowed together with `tools`");
  }
  if (request.canvases) fields.FailValue("diffusing", "it is not allowed together with `quicksilver.canvases`");
  if (generation.top_log_probabilities) fields.FailValue("diffusing", "it is not allowed together with `logprobs`");
}

void ReadChatLogprobs(JsonFields& fields, GenerateRequest& generation) {
  const bool wanted = fields.Bool("logprobs").value_or(false);
  const auto top = fields.Integer("top_logprobs", 0, kTopLogProbabilitiesMax);
  if (top && !wanted) fields.FailValue("top_logprobs", "it is only allowed when `logprobs` is true");
  if (wanted) generation.top_log_probabilities = static_cast<uint32_t>(top.value_or(0));
}

void ReadChatMaxTokens(JsonFields& fields, GenerateRequest& request) {
  const auto named = fields.Integer("max_completion_tokens", 1, INT64_MAX);
  const auto old = fields.Integer("max_tokens", 1, INT64_MAX);
  if (named && old && *named != *old) {
    fields.FailValue("max_tokens",
                     "it is " + std::to_string(*old) + ", but `max_completion_tokens` is " + std::to_string(*named));
  }
  if (named || old) request.max_tokens = Clamped(named ? *named : *old);
}

using TokenIds = std::vector<int32_t>;

// The four forms of `prompt`, as the inputs of one generation each.
std::vector<std::variant<std::string, TokenIds>> ReadPrompts(JsonFields& fields, const OpenAiLimits& limits) {
  std::vector<std::variant<std::string, TokenIds>> prompts;
  const json* prompt = fields.Find("prompt");
  if (prompt == nullptr) {
    prompts.emplace_back(std::string());  // The beginning of a document.
    return prompts;
  }
  if (prompt->is_string()) {
    prompts.emplace_back(prompt->get<std::string>());
    return prompts;
  }
  if (!prompt->is_array() || prompt->empty()) {
    fields.FailValue("prompt", "expected a string or an array that is not empty");
    return prompts;
  }
  if (prompt->at(0).is_number()) {
    if (auto ids = ReadTokenIds(fields, "prompt", *prompt)) prompts.emplace_back(std::move(*ids));
    return prompts;
  }
  if (prompt->size() > limits.choices_total_max) {
    fields.FailValue("prompt", "expected at most " + std::to_string(limits.choices_total_max) + " prompts, got " +
                                   std::to_string(prompt->size()));
    return prompts;
  }
  const bool strings = prompt->at(0).is_string();
  for (size_t i = 0; i < prompt->size() && !fields.failed(); ++i) {
    const json& item = prompt->at(i);
    const std::string name = "prompt[" + std::to_string(i) + "]";
    if (strings ? !item.is_string() : !item.is_array()) {
      fields.FailValue(name, std::string("expected ") + (strings ? "a string" : "an array of token ids") + ", got " +
                                 JsonKind(item));
    } else if (strings) {
      prompts.emplace_back(item.get<std::string>());
    } else if (auto ids = ReadTokenIds(fields, name, item)) {
      prompts.emplace_back(std::move(*ids));
    }
  }
  return prompts;
}

void ReadCompletionMaxTokens(JsonFields& fields, bool echo, OpenAiRequest& request, GenerateRequest& generation) {
  const int64_t max_tokens = fields.Integer("max_tokens", 0, INT64_MAX).value_or(kCompletionTokensDefault);
  if (max_tokens == 0 && !echo) fields.FailValue("max_tokens", "0 is only allowed when `echo` is true");
  request.discards_text = max_tokens == 0;
  generation.max_tokens = std::max<uint32_t>(1, Clamped(max_tokens));
}

void ReadSuffix(JsonFields& fields, GenerateRequest& generation) {
  const std::string suffix = fields.String("suffix").value_or("");
  if (!suffix.empty()) generation.infill.suffix = suffix;
}

void ReadCompletionLogprobs(JsonFields& fields, bool echo, GenerateRequest& generation) {
  const auto top = fields.Integer("logprobs", 0, 5);
  if (!top) return;
  generation.top_log_probabilities = static_cast<uint32_t>(*top);
  if (echo) fields.Fail(NotImplementedError("echo", "`echo` together with `logprobs` is not implemented."));
}

void ReadBestOf(JsonFields& fields, const OpenAiRequest& request, const GenerateRequest& generation) {
  const auto best_of = fields.Integer("best_of", 1, 20);
  if (!best_of) return;
  if (*best_of != generation.choices) {
    fields.FailValue("best_of", "only the value of `n` is supported, " + std::to_string(generation.choices) + ", got " +
                                    std::to_string(*best_of));
  }
  if (*best_of > 1 && request.stream) fields.FailValue("best_of", "it is not allowed when `stream` is true");
}

void AddGenerations(JsonFields& fields, const OpenAiLimits& limits, bool echo, const GenerateRequest& pattern,
                    OpenAiRequest& request) {
  for (auto& prompt : ReadPrompts(fields, limits)) {
    request.generations.push_back(pattern);
    if (const std::string* text = std::get_if<std::string>(&prompt)) {
      if (echo) request.echoes.push_back(*text);
      request.generations.back().input = *text;
    } else {
      if (echo) fields.Fail(NotImplementedError("echo", "`echo` of a prompt of token ids is not implemented."));
      request.generations.back().input = std::move(std::get<TokenIds>(prompt));
    }
  }
  const uint64_t total = uint64_t{request.choices()} * request.generations.size();
  if (total > limits.choices_total_max) {
    fields.FailValue("n", "at most " + std::to_string(limits.choices_total_max) +
                              " choices are allowed over all prompts, got " + std::to_string(total));
  }
}

}  // namespace

std::variant<OpenAiRequest, ApiError> ReadChatRequest(const json& body, const OpenAiLimits& limits) {
  std::optional<ApiError> error;
  JsonFields fields(body, "", error);
  OpenAiRequest request;
  GenerateRequest generation;
  ReadSampling(fields, limits, kTemperatureMax, generation);
  generation.input = ReadMessages(fields, error, limits.messages_max);
  ReadChatMaxTokens(fields, generation);
  ReadStreaming(fields, error, request);
  ReadExtension(fields, error, request, generation);
  ReadScheduling(fields, request, generation);
  ReadChatLogprobs(fields, generation);
  ReadDiffusing(fields, request, generation);
  CheckChatOnlyFields(fields, error);
  CheckIgnoredFields(fields, error);
  if (limits.strict_params) fields.RejectUnknown();
  if (error) return *error;
  generation.canvases = request.canvases || request.diffusing;
  request.generations.push_back(std::move(generation));
  return request;
}

std::variant<OpenAiRequest, ApiError> ReadCompletionRequest(const json& body, const OpenAiLimits& limits) {
  std::optional<ApiError> error;
  JsonFields fields(body, "", error);
  OpenAiRequest request;
  request.endpoint = OpenAiEndpoint::kCompletions;
  GenerateRequest generation;
  ReadSampling(fields, limits, kTemperatureMax, generation);
  ReadStreaming(fields, error, request);
  ReadExtension(fields, error, request, generation);
  ReadScheduling(fields, request, generation);
  const bool echo = fields.Bool("echo").value_or(false);
  ReadCompletionMaxTokens(fields, echo, request, generation);
  ReadBestOf(fields, request, generation);
  ReadSuffix(fields, generation);
  ReadCompletionLogprobs(fields, echo, generation);
  CheckNoDiffusing(fields);
  CheckIgnoredFields(fields, error);
  generation.canvases = request.canvases;
  AddGenerations(fields, limits, echo, generation, request);
  if (limits.strict_params) fields.RejectUnknown();
  if (error) return *error;
  return request;
}

std::variant<OpenAiRequest, ApiError> ReadFimRequest(const json& body, const OpenAiLimits& limits) {
  std::optional<ApiError> error;
  JsonFields fields(body, "", error);
  OpenAiRequest request;
  request.endpoint = OpenAiEndpoint::kFim;
  GenerateRequest generation;
  generation.temperature = 0.0f;
  generation.top_p = 1.0f;
  generation.presence_penalty = 1.5f;
  generation.max_tokens_default = kFimTokensDefault;
  ReadSampling(fields, limits, kFimTemperatureMax, generation);
  ReadStreaming(fields, error, request);
  ReadExtension(fields, error, request, generation);
  ReadScheduling(fields, request, generation);
  if (const auto tokens = fields.Integer("max_tokens", 1, kFimTokensMax)) generation.max_tokens = Clamped(*tokens);
  ReadSuffix(fields, generation);
  CheckNoDiffusing(fields);
  CheckIgnoredFields(fields, error);
  generation.canvases = request.canvases;
  if (const auto prompt = fields.String("prompt")) {
    generation.input = *prompt;
  } else {
    fields.FailMissing("prompt");
  }
  if (limits.strict_params) fields.RejectUnknown();
  if (error) return *error;
  request.generations.push_back(std::move(generation));
  return request;
}

std::variant<OpenAiRequest, ApiError> ParseOpenAiRequest(std::string_view body, OpenAiEndpoint endpoint,
                                                         const OpenAiLimits& limits) {
  json value;
  // The server has bounded the body already.
  if (const std::optional<JsonError> fault = ParseJson(body, {.bytes_max = body.size()}, value)) {
    return InvalidRequest(fault->code, "", fault->message);
  }
  if (!value.is_object()) {
    return InvalidRequest("invalid_value", "", "The body must be a JSON object, got " + JsonKind(value) + ".");
  }
  switch (endpoint) {
    case OpenAiEndpoint::kChat:
      return ReadChatRequest(value, limits);
    case OpenAiEndpoint::kCompletions:
      return ReadCompletionRequest(value, limits);
    case OpenAiEndpoint::kFim:
      break;
  }
  return ReadFimRequest(value, limits);
}

}  // namespace quicksilver
