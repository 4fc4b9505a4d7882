#include "coordinator/frontend/http/openai_extension.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "coordinator/frontend/http/openai_sampling.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kGivenIdsMax = 65536;

std::optional<double> ReadField(JsonFields& fields, DecodingIndex index, const DecodingChoice& decoding) {
  const DecodingField& field = kDecodingFields[index.index];
  switch (field.kind) {
    case DecodingKind::kName: {
      const std::optional<std::string> name = fields.OneOf(field.name, field.names);
      return name ? std::optional<double>(NumberOf(field.names, *name)) : std::nullopt;
    }
    case DecodingKind::kCount: {
      const auto count = fields.Integer(field.name, static_cast<int64_t>(field.min), static_cast<int64_t>(field.max));
      return count ? std::optional<double>(static_cast<double>(*count)) : std::nullopt;
    }
    case DecodingKind::kNumber: {
      const auto [min, max] = BoundsOf(index, decoding);
      return fields.Number(field.name, min, max);
    }
    case DecodingKind::kFlag:
      return fields.Bool(field.name).value_or(false) ? std::optional<double>(1) : std::nullopt;
  }
  return std::nullopt;
}

void ReadDecoding(JsonFields& fields, DecodingChoice& decoding) {
  for (size_t i = 0; i < kDecodingFieldCount; ++i) {
    if (const auto value = ReadField(fields, DecodingIndex(i), decoding)) decoding.Set(DecodingIndex(i), *value);
  }
  const auto [min, max] = BoundsOf("threshold", decoding);
  const auto named = fields.Number("confidence_threshold", min, max);
  if (!named) return;
  if (decoding.Get("threshold").value_or(*named) != *named) {
    fields.FailValue("threshold", "it differs from `quicksilver.confidence_threshold`, which means the same");
  }
  decoding.Set("threshold", *named);
}

std::vector<int32_t> ReadIds(JsonFields& fields, const char* name, size_t ids_max, bool partial) {
  const json* list = fields.FindArray(name, ids_max);
  if (list == nullptr || list->empty()) return {};
  return ReadTokenIds(fields, name, *list, partial).value_or(std::vector<int32_t>());
}

void ReadGiven(JsonFields& fields, InfillChoice& infill) {
  infill.fixed_ids = ReadIds(fields, "fixed_ids", kGivenIdsMax, /*partial=*/true);
  const json* draft = fields.Find("draft");
  if (draft == nullptr) return;
  if (draft->is_string()) {
    infill.draft = draft->get<std::string>();
  } else if (draft->is_array()) {
    infill.draft = ReadIds(fields, "draft", kGivenIdsMax, /*partial=*/true);
  } else {
    fields.FailValue("draft", "expected a string or an array of token ids, got " + JsonKind(*draft));
  }
}

// The contract's path to ours, the first that fits. Longer ones come first.
constexpr std::pair<std::string_view, std::string_view> kPaths[] = {
    {"decoding.", "quicksilver."},
    {"infill.suffix_ids", "suffix"},
    {"infill.suffix", "suffix"},
    {"infill.draft_text", "quicksilver.draft"},
    {"infill.draft_ids", "quicksilver.draft"},
    {"infill.", "quicksilver."},
    {"sampling.top_log_probabilities", "top_logprobs"},
    {"sampling.top_k", "quicksilver.top_k"},
    {"sampling.forbidden_ids", "quicksilver.forbidden_ids"},
    {"sampling.biases", "logit_bias"},
    {"sampling.", ""},
};

}  // namespace

void ReadExtension(JsonFields& outer, std::optional<ApiError>& error, OpenAiRequest& request,
                   GenerateRequest& generation) {
  const json* object = outer.FindObject("quicksilver");
  if (object == nullptr) return;
  JsonFields fields(*object, "quicksilver.", error);
  ReadDecoding(fields, generation.decoding);
  ReadGiven(fields, generation.infill);
  generation.forbidden_ids = ReadIds(fields, "forbidden_ids", kBiasesMax, /*partial=*/false);
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

ApiError InHttpTerms(ApiError error) {
  for (const auto& [theirs, ours] : kPaths) {
    if (error.param.rfind(theirs, 0) != 0) continue;
    for (size_t at = 0; (at = error.message.find(theirs, at)) != std::string::npos; at += ours.size()) {
      error.message.replace(at, theirs.size(), ours);
    }
    error.param.replace(0, theirs.size(), ours);
    break;
  }
  return error;
}

}  // namespace quicksilver
