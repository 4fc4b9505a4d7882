// Whatever text a model makes, in whatever pieces, a strict event parser gets the same text from a stream as from the
// whole body. Input: the first byte cuts the rest into pieces.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "common/utf8.h"
#include "coordinator/frontend/http/openai_answer.h"
#include "tests/openai/sse_parser.h"

namespace {

using namespace quicksilver;
using nlohmann::json;

// Pieces of about `length` bytes; never inside a character, which is what DeltaEvent promises.
std::vector<std::string> Cut(std::string_view text, size_t length) {
  std::vector<std::string> pieces;
  std::string piece;
  while (!text.empty()) {
    const size_t n = std::max<size_t>(1, Utf8CharacterLength(text));
    piece += text.substr(0, n);
    text.remove_prefix(n);
    if (piece.size() >= length || text.empty()) pieces.push_back(std::exchange(piece, {}));
  }
  return pieces;
}

// A token a byte, as Cut() made them of whole characters.
std::vector<WrittenToken> Tokens(std::string_view piece) {
  std::vector<WrittenToken> tokens;
  for (const char byte : piece) tokens.push_back({.token = {static_cast<uint8_t>(byte), std::string(1, byte), -1.0f}});
  return tokens;
}

std::string BytesOf(const json& logprobs) {
  std::string bytes;
  if (logprobs.is_null()) return bytes;
  for (const json& token : logprobs["content"]) {
    for (const int byte : token["bytes"]) bytes += static_cast<char>(byte);
  }
  return bytes;
}

std::string StreamedText(const std::string& stream, std::string& bytes) {
  const std::optional<std::vector<std::string>> events = ParseEvents(stream);
  CHECK(events && !events->empty() && events->back() == "[DONE]");
  std::string text;
  int finishes = 0;
  for (size_t i = 0; i + 1 < events->size(); ++i) {
    const json chunk = json::parse((*events)[i], nullptr, /*allow_exceptions=*/false);
    CHECK(chunk.is_object() && chunk["choices"].size() == 1);
    const json& choice = chunk["choices"][0];
    CHECK((i == 0) == choice["delta"].contains("role"));
    text += choice["delta"].value("content", "");
    bytes += BytesOf(choice["logprobs"]);
    finishes += !choice["finish_reason"].is_null();
  }
  CHECK(finishes == 1);
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  OpenAiRequest request;
  request.generations.resize(1);
  request.generations[0].top_log_probabilities = 0;
  OpenAiAnswer whole(request, "chatcmpl-1");
  request.stream = true;
  OpenAiAnswer streamed(request, "chatcmpl-1");
  std::string stream;
  for (OpenAiAnswer* answer : {&whole, &streamed}) answer->OnStarted(0, {"m", "fp_0", 1, 1});
  for (const std::string& piece : Cut(text, data[0] % 16 + 1u)) {
    for (OpenAiAnswer* answer : {&whole, &streamed}) answer->OnDelta(0, {0, piece, 0, 0, Tokens(piece)});
    stream += streamed.NextEvents();
  }
  for (OpenAiAnswer* answer : {&whole, &streamed}) answer->OnFinished(0, {});
  while (!streamed.exhausted()) stream += streamed.NextEvents();
  const json body = json::parse(whole.Body(), nullptr, /*allow_exceptions=*/false);
  CHECK(body.is_object());
  const std::string content = body["choices"][0]["message"]["content"];
  std::string bytes;
  CHECK(StreamedText(stream, bytes) == content);
  CHECK(bytes == text && BytesOf(body["choices"][0]["logprobs"]) == text);
  if (FindInvalidUtf8(text) == std::string_view::npos) CHECK(content == text);
  return 0;
}
