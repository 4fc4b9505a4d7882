#include "coordinator/frontend/http/openai_sampling.h"

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/numbers.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kStopStringsMax = 4;

void ReadModel(JsonFields& fields, GenerateRequest& request) {
  const std::optional<std::string> model = fields.String("model");
  if (!model) return fields.FailMissing("model");
  request.model = *model;
  if (model->size() <= kModelBytesMax) return;
  fields.FailValue(
      "model", "expected at most " + std::to_string(kModelBytesMax) + " bytes, got " + std::to_string(model->size()));
}

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

// Keys are token ids in decimal digits.
void ReadLogitBias(JsonFields& fields, GenerateRequest& request) {
  const json* bias = fields.FindObject("logit_bias");
  if (bias == nullptr) return;
  if (bias->size() > kBiasesMax) {
    return fields.FailValue("logit_bias", "expected at most " + std::to_string(kBiasesMax) + " entries, got " +
                                              std::to_string(bias->size()));
  }
  for (const auto& [key, value] : bias->items()) {
    int32_t id = 0;
    if (key.find_first_not_of("0123456789") != std::string::npos || !absl::SimpleAtoi(key, &id)) {
      return fields.FailValue("logit_bias", "expected token ids as keys, got '" + key.substr(0, 64) + "'");
    }
    if (!value.is_number() || !(value.get<double>() >= -kBiasMax && value.get<double>() <= kBiasMax)) {
      return fields.FailValue("logit_bias." + key,
                              "expected a number from -100 to 100, got " + value.dump(-1, ' ', true).substr(0, 64));
    }
    request.logit_bias[id] = value.get<float>();
  }
}

}  // namespace

void ReadSampling(JsonFields& fields, const OpenAiLimits& limits, double temperature_max, GenerateRequest& request) {
  ReadModel(fields, request);
  if (const auto value = fields.Number("temperature", 0, temperature_max)) {
    request.temperature = static_cast<float>(*value);
  }
  if (const auto value = fields.Number("top_p", 0, 1, /*open_below=*/true)) {
    request.top_p = static_cast<float>(*value);
  }
  request.seed = fields.Integer("seed", INT64_MIN, INT64_MAX);
  request.choices = static_cast<uint32_t>(fields.Integer("n", 1, limits.choices_max).value_or(1));
  request.stop = ReadStop(fields);
  for (const auto& [name, penalty] : {std::pair<const char*, float*>{"presence_penalty", &request.presence_penalty},
                                      {"frequency_penalty", &request.frequency_penalty}}) {
    if (const auto value = fields.Number(name, -kPenaltyMax, kPenaltyMax)) *penalty = static_cast<float>(*value);
  }
  ReadLogitBias(fields, request);
}

std::optional<std::vector<int32_t>> ReadTokenIds(JsonFields& fields, const std::string& name, const json& list,
                                                 bool partial) {
  const int64_t least = partial ? InfillChoice::kUndecided : 0;
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < least || id.get<int64_t>() > INT32_MAX) {
      fields.FailValue(name, partial ? "expected token ids, integers from 0, or -1 for a position to be decided"
                                     : "expected token ids, integers from 0");
      return std::nullopt;
    }
    ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
  }
  if (ids.empty()) fields.FailValue(name, "expected at least one token id");
  return ids;
}

}  // namespace quicksilver
