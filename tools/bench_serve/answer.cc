#include "tools/bench_serve/answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/json.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kTextBytesMax = 1024 * 1024;
// Where nobody counts tokens: what English text and code come to with common vocabularies.
constexpr uint64_t kBytesPerToken = 4;

const json* Find(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

void TakeCount(const json* object, const char* key, uint64_t& out) {
  const json* value = object == nullptr ? nullptr : Find(*object, key);
  if (value == nullptr) return;
  if (value->is_boolean()) out = value->get<bool>() ? 1 : 0;
  if (value->is_number()) out = static_cast<uint64_t>(std::clamp(value->get<double>(), 0.0, 1e15));
}

// The text of a choice: of a chunk or a whole answer, chat or not.
std::string_view TextOf(const json& choice) {
  const json* text = Find(choice, "text");
  for (const char* part : {"delta", "message"}) {
    const json* message = Find(choice, part);
    if (message == nullptr) continue;
    text = Find(*message, "content");
    for (const char* reasoning : {"reasoning_content", "reasoning"}) {
      if (text == nullptr || (text->is_string() && text->empty())) text = Find(*message, reasoning);
    }
  }
  return text != nullptr && text->is_string() ? std::string_view(text->get_ref<const std::string&>())
                                              : std::string_view();
}

std::string ErrorText(const json& error) {
  const json* message = Find(error, "message");
  if (message != nullptr && message->is_string()) return message->get<std::string>();
  return error.is_string() ? error.get<std::string>() : error.dump(-1, ' ', true);
}

}  // namespace

void AnswerReader::Fail(std::string_view message) {
  if (record_->error.empty()) record_->error = message.substr(0, kErrorBytesMax);
}

void AnswerReader::TakeText(std::string_view text, int32_t block, double seconds) {
  if (text.empty()) return;
  record_->pieces.push_back({seconds, static_cast<uint32_t>(text.size()), block});
  text_bytes_ += text.size();
  if (keep_text_) record_->text += text.substr(0, kTextBytesMax - std::min(kTextBytesMax, record_->text.size()));
}

void AnswerReader::OnEvent(std::string_view data, double seconds) {
  if (data == "[DONE]") {
    done_ = true;
    return;
  }
  json event;
  if (const auto error = ParseJson(data, {}, event); error.has_value()) {
    return Fail("the server sent an event that is not JSON: " + error->message);
  }
  if (const json* error = Find(event, "error"); error != nullptr) return Fail(ErrorText(*error));
  const json* own = Find(event, "quicksilver");
  uint64_t block = UINT64_MAX;
  TakeCount(own, "block", block);
  if (const json* choices = Find(event, "choices"); choices != nullptr && choices->is_array()) {
    for (const json& choice : *choices) {
      TakeText(TextOf(choice), block > INT32_MAX ? -1 : static_cast<int32_t>(block), seconds);
      const json* reason = Find(choice, "finish_reason");
      if (reason != nullptr && reason->is_string()) record_->finish_reason = reason->get<std::string>();
    }
  }
  TakeCount(own, "forwards", record_->forwards);
  TakeCount(own, "resumed", record_->resumed);
  const json* usage = Find(event, "usage");
  if (usage == nullptr) return;
  has_usage_ = Find(*usage, "completion_tokens") != nullptr;
  TakeCount(usage, "prompt_tokens", record_->prompt_tokens);
  TakeCount(usage, "completion_tokens", record_->output_tokens);
  TakeCount(Find(*usage, "prompt_tokens_details"), "cached_tokens", record_->cached_tokens);
}

void AnswerReader::OnBody(int status, std::string_view body, double seconds) {
  if (status >= 200 && status < 300) {
    done_ = true;
    return OnEvent(body, seconds);
  }
  json parsed;
  if (ParseJson(body, {}, parsed).has_value()) return Fail(body);
  const json* error = Find(parsed, "error");
  Fail(error != nullptr ? ErrorText(*error) : std::string(body));
}

void AnswerReader::Finish(int status, double seconds) {
  record_->status = status;
  record_->end = seconds;
  if (!has_usage_) record_->output_tokens = (text_bytes_ + kBytesPerToken - 1) / kBytesPerToken;
  if (status == 429 || status == 503) {
    record_->outcome = Outcome::kRejected;
    return;
  }
  if (status < 200 || status >= 300) {
    Fail("HTTP status " + std::to_string(status));
  } else if (!done_ && record_->finish_reason.empty()) {
    Fail("the stream ended without a finish_reason and without [DONE]");
  }
  record_->outcome = record_->error.empty() ? Outcome::kOk : Outcome::kFailed;
}

}  // namespace quicksilver
