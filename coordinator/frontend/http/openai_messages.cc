#include "coordinator/frontend/http/openai_messages.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kPartsMax = 2048;

std::string ReadPart(const json& part, const std::string& path, std::optional<ApiError>& error) {
  if (!part.is_object()) {
    error = InvalidRequest("invalid_value", path,
                           "Invalid value for `" + path + "`: expected an object, got " + JsonKind(part) + ".");
    return "";
  }
  JsonFields fields(part, path + ".", error);
  const std::optional<std::string> type = fields.String("type");
  if (!type) {
    fields.FailMissing("type");
    return "";
  }
  if (*type != "text") {
    fields.Fail(InvalidRequest("unsupported_content_type", fields.Path("type"),
                               "Only content parts of type 'text' are supported, got '" + type->substr(0, 64) + "'."));
    return "";
  }
  std::optional<std::string> text = fields.String("text");
  if (!text) fields.FailMissing("text");
  return text.value_or("");
}

std::string ReadContent(JsonFields& fields, std::optional<ApiError>& error) {
  const json* content = fields.Find("content");
  if (content == nullptr) {
    fields.FailMissing("content");
    return "";
  }
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) {
    fields.FailValue("content", "expected a string or an array of parts, got " + JsonKind(*content));
    return "";
  }
  if (content->empty() || content->size() > kPartsMax) {
    fields.FailValue("content",
                     "expected 1 to " + std::to_string(kPartsMax) + " parts, got " + std::to_string(content->size()));
    return "";
  }
  std::string text;
  for (size_t i = 0; i < content->size() && !error; ++i) {
    if (i > 0) text += '\n';
    text += ReadPart(content->at(i), fields.Path("content[" + std::to_string(i) + "]"), error);
  }
  return text;
}

ChatMessage ReadMessage(const json& value, const std::string& path, std::optional<ApiError>& error) {
  ChatMessage message;
  if (!value.is_object()) {
    error = InvalidRequest("invalid_value", path,
                           "Invalid value for `" + path + "`: expected an object, got " + JsonKind(value) + ".");
    return message;
  }
  JsonFields fields(value, path + ".", error);
  const std::optional<std::string> role = fields.OneOf("role", {"developer", "system", "user", "assistant", "tool"});
  if (!role) fields.FailMissing("role");
  message.role = role.value_or("") == "developer" ? "system" : role.value_or("");
  message.name = fields.String("name").value_or("");
  for (const char* name : {"tool_calls", "function_call", "audio"}) {
    const json* given = message.role == "assistant" ? fields.Find(name) : nullptr;
    if (given == nullptr || (given->is_array() && given->empty())) continue;
    fields.Fail(NotImplementedError(fields.Path(name), "`" + fields.Path(name) + "` is not implemented."));
  }
  if (message.role == "tool") {
    const std::optional<std::string> id = fields.String("tool_call_id");
    if (!id) fields.FailMissing("tool_call_id");
    // An earlier assistant message with tool calls has been refused above, so no id can match.
    fields.FailValue("tool_call_id", "no earlier assistant message has this tool call");
  }
  message.content = ReadContent(fields, error);
  return message;
}

}  // namespace

std::vector<ChatMessage> ReadMessages(JsonFields& fields, std::optional<ApiError>& error, size_t messages_max) {
  std::vector<ChatMessage> messages;
  const json* list = fields.FindArray("messages", messages_max);
  if (list == nullptr) {
    fields.FailMissing("messages");
    return messages;
  }
  if (list->empty()) fields.FailValue("messages", "expected at least one message");
  for (size_t i = 0; i < list->size() && !error; ++i) {
    messages.push_back(ReadMessage(list->at(i), "messages[" + std::to_string(i) + "]", error));
  }
  return messages;
}

}  // namespace quicksilver
