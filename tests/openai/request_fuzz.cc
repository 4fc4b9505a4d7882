// Any body is either a request within the limits or a refusal that can be written as an error body.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <variant>

#include "common/check.h"
#include "coordinator/frontend/http/openai_reply.h"
#include "coordinator/frontend/http/openai_request.h"

namespace {

using namespace quicksilver;

void CheckRefusal(const ApiError& error) {
  CHECK(error.http_status == 400 || error.http_status == 501);
  CHECK(error.should_not_retry == (error.http_status == 501));
  const nlohmann::json body = nlohmann::json::parse(ToResponse(error).body, nullptr, /*allow_exceptions=*/false);
  CHECK(body.is_object() && body["error"].size() == 4);
}

void CheckRequest(const OpenAiRequest& request, const OpenAiLimits& limits) {
  CHECK(!request.generations.empty());
  CHECK(request.generations.size() * request.choices() <= limits.choices_total_max);
  CHECK(request.echoes.empty() || request.echoes.size() == request.generations.size());
  CHECK(request.stream || (!request.diffusing && !request.canvases && !request.include_usage));
  for (const GenerateRequest& generation : request.generations) {
    CHECK(generation.choices >= 1 && generation.choices <= limits.choices_max);
    CHECK(generation.stop.size() <= 4);
    CHECK(generation.top_k <= 256);
    CHECK(!generation.max_tokens || *generation.max_tokens >= 1);
    CHECK(!generation.temperature || (*generation.temperature >= 0 && *generation.temperature <= 2));
    CHECK(!generation.top_p || (*generation.top_p >= 0 && *generation.top_p <= 1));
    CHECK(generation.logit_bias.size() <= kBiasesMax && generation.forbidden_ids.size() <= kBiasesMax);
    for (const auto& [id, bias] : generation.logit_bias) CHECK(id >= 0 && bias >= -kBiasMax && bias <= kBiasMax);
    for (const int32_t id : generation.infill.fixed_ids) CHECK(id >= InfillChoice::kUndecided);
    CHECK(generation.top_log_probabilities.value_or(0) <= kTopLogProbabilitiesMax);
    for (size_t i = 0; i < kDecodingFieldCount; ++i) {
      const DecodingField& field = kDecodingFields[i];
      const bool names = field.kind == DecodingKind::kName;
      const auto [min, max] = BoundsOf(DecodingIndex(i), generation.decoding);
      const double value = generation.decoding.Get(DecodingIndex(i)).value_or(names ? 1 : min);
      CHECK(value >= (names ? 1 : min) && value <= (names ? static_cast<double>(field.names.size()) : max));
    }
    const auto* messages = std::get_if<std::vector<ChatMessage>>(&generation.input);
    CHECK(messages == nullptr || (!messages->empty() && messages->size() <= limits.messages_max));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  for (const bool strict : {false, true}) {
    const OpenAiLimits limits{.strict_params = strict};
    for (const OpenAiEndpoint endpoint : {OpenAiEndpoint::kChat, OpenAiEndpoint::kCompletions, OpenAiEndpoint::kFim}) {
      const std::variant<OpenAiRequest, ApiError> parsed = ParseOpenAiRequest(body, endpoint, limits);
      if (const ApiError* error = std::get_if<ApiError>(&parsed)) {
        CheckRefusal(*error);
      } else {
        CheckRequest(std::get<OpenAiRequest>(parsed), limits);
      }
    }
  }
  return 0;
}
