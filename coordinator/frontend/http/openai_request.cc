#include "coordinator/frontend/http/openai_request.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "common/json.h"
#include "coordinator/frontend/http/json_fields.h"
#include "coordinator/frontend/http/openai_messages.h"
#include "coordinator/frontend/http/openai_unsupported.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kStopStringsMax = 4;
constexpr int64_t kStepsMax = 65536;
constexpr uint32_t kCompletionTokensDefault = 16;

uint32_t Clamped(int64_t value) { return static_cast<uint32_t>(std::min<int64_t>(value, UINT32_MAX)); }

std::vector<std::string> ReadStop(JsonFields& fields) {
  const json* stop = fields.Find("stop");
  if (stop == nullptr) return {};
  const json list = stop->is_array() ? *stop : json::array({*stop});
  if (list.size() > kStopStringsMax) {
    fields.FailValue("stop", "expected at most 4 strings, got " + std::to_string(list.size()));
  }
  std::vector<std::string> strings;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string name = stop->is_array() ? "stop[" + std::to_string(i) + "]" : "stop";
    if (!list[i].is_string()) {
      fields.FailValue(name, "expected a string, got " + JsonKind(list[i]));
      break;
    }
    strings.push_back(list[i].get<std::string>());
    if (strings.back().empty()) fields.FailValue(name, "expected a string that is not empty");
    if (strings.back().size() > kStopBytesMax) {
      fields.FailValue(name, "expected at most " + std::to_string(kStopBytesMax) + " bytes, got " +
                                 std::to_string(strings.back().size()));
    }
  }
  return strings;
}

void ReadSampling(JsonFields& fields, const OpenAiLimits& limits, GenerateRequest& request) {
  if (const auto model = fields.String("model")) {
    request.model = *model;
    if (model->size() > kModelBytesMax) {
      fields.FailValue("model", "expected at most " + std::to_string(kModelBytesMax) + " bytes, got " +
                                    std::to_string(model->size()));
    }
  } else {
    fields.FailMissing("model");
  }
  if (const auto value = fields.Number("temperature", 0, 2)) request.temperature = static_cast<float>(*value);
  if (const auto value = fields.Number("top_p", 0, 1, /*open_below=*/true)) {
    request.top_p = static_cast<float>(*value);
  }
  request.seed = fields.Integer("seed", INT64_MIN, INT64_MAX);
  request.choices = static_cast<uint32_t>(fields.Integer("n", 1, limits.choices_max).value_or(1));
  request.stop = ReadStop(fields);
}

void ReadStreaming(JsonFields& fields, std::optional<ApiError>& error, OpenAiRequest& request) {
  request.stream = fields.Bool("stream").value_or(false);
  const json* options = fields.FindObject("stream_options");
  if (options == nullptr) return;
  if (!request.stream) fields.FailValue("stream_options", "it is only allowed when `stream` is true");
  JsonFields nested(*options, "stream_options.", error);
  request.include_usage = nested.Bool("include_usage").value_or(false);
  nested.Bool("include_obfuscation");
}

PolicyChoice ToPolicy(const std::string& name) {
  if (name == "static") return PolicyChoice::kStatic;
  if (name == "dynamic") return PolicyChoice::kDynamic;
  if (name == "sequential") return PolicyChoice::kSequential;
  return PolicyChoice::kThreshold;
}

void ReadThreshold(JsonFields& fields, DecodingChoice& decoding) {
  const auto named = fields.Number("confidence_threshold", 0, 1);
  const auto brief = fields.Number("threshold", 0, 1);
  if (named && brief && *named != *brief) {
    fields.FailValue("threshold", "it differs from `quicksilver.confidence_threshold`, which means the same");
  }
  if (named || brief) decoding.threshold = static_cast<float>(named ? *named : *brief);
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

// Our own object (serving.md §1.12): unknown keys are errors, since nobody else could have meant them.
void ReadExtension(JsonFields& outer, std::optional<ApiError>& error, OpenAiRequest& request,
                   GenerateRequest& generation) {
  const json* object = outer.FindObject("quicksilver");
  if (object == nullptr) return;
  JsonFields fields(*object, "quicksilver.", error);
  DecodingChoice& decoding = generation.decoding;
  if (const auto name = fields.OneOf("policy", {"static", "dynamic", "sequential", "threshold"})) {
    decoding.policy = ToPolicy(*name);
  }
  if (const auto value = fields.Integer("block_length", 1, kStepsMax)) decoding.block_length = Clamped(*value);
  if (const auto value = fields.Integer("steps", 1, kStepsMax)) decoding.steps = Clamped(*value);
  ReadThreshold(fields, decoding);
  decoding.random_remasking = fields.OneOf("remasking", {"low_confidence", "random"}).value_or("") == "random";
  if (const auto value = fields.Number("guidance_scale", 0, 100)) decoding.guidance_scale = static_cast<float>(*value);
  decoding.suppress_eos = fields.Bool("suppress_eos").value_or(false);
  decoding.distrust_eos = fields.Bool("distrust_eos").value_or(false);
  generation.top_k = static_cast<uint32_t>(fields.Integer("top_k", 0, 256).value_or(0));
  const auto target = fields.Integer("latency_target_ms", static_cast<int64_t>(kLatencyTargetMin * 1000),
                                     static_cast<int64_t>(kLatencyTargetMax * 1000));
  generation.latency_target_seconds = static_cast<double>(target.value_or(0)) / 1000;
  request.canvases = fields.Bool("canvases").value_or(false);
  if (request.canvases && !request.stream) {
    fields.FailValue("canvases", "it is only allowed when `stream` is true");
  }
  fields.RejectUnknown();
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

std::optional<TokenIds> ReadTokenIds(JsonFields& fields, const std::string& name, const json& list) {
  TokenIds ids;
  ids.reserve(list.size());
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      fields.FailValue(name, "expected token ids, integers from 0");
      return std::nullopt;
    }
    ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
  }
  if (ids.empty()) fields.FailValue(name, "expected at least one token id");
  return ids;
}

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
  ReadSampling(fields, limits, generation);
  generation.input = ReadMessages(fields, error, limits.messages_max);
  ReadChatMaxTokens(fields, generation);
  ReadStreaming(fields, error, request);
  ReadExtension(fields, error, request, generation);
  ReadScheduling(fields, request, generation);
  ReadDiffusing(fields, request, generation);
  CheckPenalties(fields);
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
  ReadSampling(fields, limits, generation);
  ReadStreaming(fields, error, request);
  ReadExtension(fields, error, request, generation);
  ReadScheduling(fields, request, generation);
  const bool echo = fields.Bool("echo").value_or(false);
  ReadCompletionMaxTokens(fields, echo, request, generation);
  ReadBestOf(fields, request, generation);
  CheckPenalties(fields);
  CheckCompletionOnlyFields(fields);
  CheckIgnoredFields(fields, error);
  generation.canvases = request.canvases;
  AddGenerations(fields, limits, echo, generation, request);
  if (limits.strict_params) fields.RejectUnknown();
  if (error) return *error;
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
  return endpoint == OpenAiEndpoint::kChat ? ReadChatRequest(value, limits) : ReadCompletionRequest(value, limits);
}

}  // namespace quicksilver
