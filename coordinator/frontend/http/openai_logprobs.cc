#include "coordinator/frontend/http/openai_logprobs.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include "common/http/message.h"

namespace quicksilver {
namespace {

void AppendNumber(float value, std::string& out) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", static_cast<double>(value));
  out += text;
}

// `"token":…,"logprob":…,"bytes":…`
void AppendToken(const AlternativeToken& token, std::string& out) {
  out += "\"token\":";
  http::AppendJsonString(token.bytes, out);
  out += ",\"logprob\":";
  AppendNumber(token.log_probability, out);
  out += ",\"bytes\":";
  if (token.bytes.empty()) {
    out += "null";
    return;
  }
  char separator = '[';
  for (const char byte : token.bytes) {
    out += separator;
    out += std::to_string(static_cast<uint8_t>(byte));
    separator = ',';
  }
  out += ']';
}

// The token itself is in it, as the API has always done. Of tokens that read alike the more probable one is told.
void AppendTopObject(const WrittenToken& written, std::string& out) {
  std::set<std::string> told;
  const auto add = [&](const AlternativeToken& token) {
    std::string key;
    http::AppendJsonString(token.bytes, key);
    if (!told.insert(key).second) return;
    out += told.size() > 1 ? "," : "";
    out += key + ":";
    AppendNumber(token.log_probability, out);
  };
  out += '{';
  for (const AlternativeToken& token : written.top) add(token);
  add(written.token);
  out += '}';
}

bool BeginsInsideCharacter(const WrittenToken& written) {
  return !written.token.bytes.empty() && (static_cast<uint8_t>(written.token.bytes[0]) & 0xC0) == 0x80;
}

}  // namespace

std::string ChatLogprobs(const std::vector<WrittenToken>& tokens, size_t count) {
  std::string out = "{\"content\":[";
  for (size_t i = 0; i < count; ++i) {
    out += i > 0 ? ",{" : "{";
    AppendToken(tokens[i].token, out);
    out += ",\"top_logprobs\":[";
    for (size_t j = 0; j < tokens[i].top.size(); ++j) {
      out += j > 0 ? ",{" : "{";
      AppendToken(tokens[i].top[j], out);
      out += '}';
    }
    out += "]}";
  }
  return out + "],\"refusal\":null}";
}

std::string CompletionLogprobs(const std::vector<WrittenToken>& tokens, size_t count, uint64_t prompt_characters) {
  std::string names, numbers, tops, offsets;
  for (size_t i = 0; i < count; ++i) {
    for (std::string* list : {&names, &numbers, &tops, &offsets}) *list += i > 0 ? "," : "";
    http::AppendJsonString(tokens[i].token.bytes, names);
    AppendNumber(tokens[i].token.log_probability, numbers);
    AppendTopObject(tokens[i], tops);
    offsets += std::to_string(prompt_characters + tokens[i].offset);
  }
  return "{\"tokens\":[" + names + "],\"token_logprobs\":[" + numbers + "],\"top_logprobs\":[" + tops +
         "],\"text_offset\":[" + offsets + "]}";
}

size_t WholeTokens(const std::vector<WrittenToken>& tokens, size_t count) {
  count = std::min(count, tokens.size());
  while (count < tokens.size() && BeginsInsideCharacter(tokens[count])) ++count;
  return count;
}

}  // namespace quicksilver
