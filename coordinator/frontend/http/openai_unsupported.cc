#include "coordinator/frontend/http/openai_unsupported.h"

#include <nlohmann/json.hpp>
#include <string>

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kToolsMax = 128;
constexpr size_t kMetadataMax = 16;

void NotDelivered(JsonFields& fields, const char* name) {
  fields.Fail(NotImplementedError(name, std::string("`") + name + "` is not implemented."));
}

void Unsupported(JsonFields& fields, const char* name, const std::string& hint) {
  fields.Fail(
      InvalidRequest("unsupported_parameter", name, std::string("`") + name + "` is not supported" + hint + "."));
}

void CheckResponseFormat(JsonFields& fields, std::optional<ApiError>& error) {
  const json* format = fields.FindObject("response_format");
  if (format == nullptr) return;
  JsonFields nested(*format, "response_format.", error);
  const std::optional<std::string> type = nested.OneOf("type", {"text", "json_object", "json_schema"});
  if (!type) return nested.FailMissing("type");
  if (*type != "text") NotDelivered(fields, "response_format");
}

void CheckTools(JsonFields& fields, std::optional<ApiError>& error) {
  const json* tools = fields.FindArray("tools", kToolsMax);
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    const std::string path = "tools[" + std::to_string(i) + "]";
    if (!tools->at(i).is_object()) return fields.FailValue(path, "expected an object, got " + JsonKind(tools->at(i)));
    JsonFields tool(tools->at(i), path + ".", error);
    if (!tool.OneOf("type", {"function"})) tool.FailMissing("type");
  }
  if (tools != nullptr && !tools->empty()) NotDelivered(fields, "tools");
  fields.Bool("parallel_tool_calls");
  const json* choice = fields.Find("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object()) {
    JsonFields nested(*choice, "tool_choice.", error);
    if (!nested.OneOf("type", {"function", "allowed_tools"})) nested.FailMissing("type");
    return NotDelivered(fields, "tool_choice");
  }
  const std::optional<std::string> mode = fields.OneOf("tool_choice", {"none", "auto", "required"});
  if (mode && *mode == "required") NotDelivered(fields, "tool_choice");
}

void CheckModalities(JsonFields& fields) {
  const json* modalities = fields.FindArray("modalities", 8);
  if (modalities == nullptr) return;
  for (const json& modality : *modalities) {
    if (modality != "text") Unsupported(fields, "modalities", " other than [\"text\"]");
  }
}

void CheckMetadata(JsonFields& fields) {
  const json* metadata = fields.FindObject("metadata");
  if (metadata == nullptr) return;
  if (metadata->size() > kMetadataMax) {
    fields.FailValue("metadata", "expected at most " + std::to_string(kMetadataMax) + " pairs, got " +
                                     std::to_string(metadata->size()));
  }
  for (const auto& [key, value] : metadata->items()) {
    if (key.size() > 64) return fields.FailValue("metadata", "expected keys of at most 64 bytes");
    if (!value.is_string() || value.get_ref<const std::string&>().size() > 512) {
      return fields.FailValue("metadata." + key, "expected a string of at most 512 bytes");
    }
  }
}

}  // namespace

void CheckChatOnlyFields(JsonFields& fields, std::optional<ApiError>& error) {
  CheckResponseFormat(fields, error);
  CheckTools(fields, error);
  CheckModalities(fields);
  for (const char* name : {"audio", "web_search_options", "moderation"}) {
    if (fields.Find(name) != nullptr) Unsupported(fields, name, "");
  }
  if (fields.Find("functions") != nullptr) Unsupported(fields, "functions", "; use `tools`");
  if (fields.Find("function_call") != nullptr) Unsupported(fields, "function_call", "; use `tool_choice`");
  // The models served here do not reason apart: every effort gives the same answer.
  fields.OneOf("reasoning_effort", {"instant", "none", "minimal", "low", "medium", "high", "xhigh", "max"});
  fields.Bool("reasoning_summary");
  fields.Bool("reasoning_summary_wait");
  fields.OneOf("verbosity", {"low", "medium", "high"});
}

void CheckNoDiffusing(JsonFields& fields) {
  if (fields.Bool("diffusing").value_or(false)) Unsupported(fields, "diffusing", " other than on /v1/chat/completions");
}

void CheckIgnoredFields(JsonFields& fields, std::optional<ApiError>& error) {
  fields.String("user");
  fields.String("safety_identifier", 64);
  fields.FindObject("prompt_cache_options");
  fields.String("prompt_cache_retention");
  fields.Bool("store");
  CheckMetadata(fields);
  if (const json* prediction = fields.FindObject("prediction")) {
    JsonFields nested(*prediction, "prediction.", error);
    if (!nested.OneOf("type", {"content"})) nested.FailMissing("type");
    if (nested.Find("content") == nullptr) nested.FailMissing("content");
  }
}

}  // namespace quicksilver
