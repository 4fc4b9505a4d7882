#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "coordinator/frontend/http/openai_answer.h"
#include "coordinator/frontend/http/openai_logprobs.h"
#include "tests/openai/scripted_inference.h"
#include "tests/openai/sse_parser.h"

namespace quicksilver {
namespace {

using nlohmann::json;

WrittenToken Token(std::string bytes, float log_probability, uint64_t offset, std::vector<AlternativeToken> top = {}) {
  return {.token = {1, std::move(bytes), log_probability}, .top = std::move(top), .offset = offset};
}

// "é" in two tokens, the first of which also has an "H".
DeltaEvent Accent() {
  DeltaEvent delta = Delta("H\xC3\xA9");
  delta.tokens = {Token("H\xC3", -0.25f, 0, {{1, "H\xC3", -0.25f}, {2, "Hi", -1.5f}}), Token("\xA9", 0.0f, 1)};
  return delta;
}

OpenAiRequest Request(OpenAiEndpoint endpoint, bool stream) {
  OpenAiRequest request;
  request.endpoint = endpoint;
  request.stream = stream;
  request.generations.resize(1);
  request.generations[0].top_log_probabilities = 2;
  return request;
}

json Body(OpenAiAnswer& answer, const DeltaEvent& delta) {
  StartedEvent started = Started();
  started.prompt_characters = 5;
  answer.OnStarted(0, started);
  answer.OnDelta(0, delta);
  answer.OnFinished(0, Finished());
  return json::parse(answer.Body());
}

TEST(LogprobsTest, AChatBodyHasOneEntryAToken) {
  OpenAiAnswer answer(Request(OpenAiEndpoint::kChat, false), "chatcmpl-1");
  EXPECT_EQ(Body(answer, Accent())["choices"][0]["logprobs"], json::parse(R"({"content":[
      {"token":"H\ufffd","logprob":-0.25,"bytes":[72,195],"top_logprobs":[
        {"token":"H\ufffd","logprob":-0.25,"bytes":[72,195]},{"token":"Hi","logprob":-1.5,"bytes":[72,105]}]},
      {"token":"\ufffd","logprob":0,"bytes":[169],"top_logprobs":[]}],"refusal":null})"));
}

TEST(LogprobsTest, ACompletionBodyHasFourListsWhoseOffsetsCountFromThePrompt) {
  OpenAiAnswer answer(Request(OpenAiEndpoint::kCompletions, false), "cmpl-1");
  EXPECT_EQ(Body(answer, Accent())["choices"][0]["logprobs"],
            json::parse(R"({"tokens":["H\ufffd","\ufffd"],"token_logprobs":[-0.25,0],
                            "top_logprobs":[{"H\ufffd":-0.25,"Hi":-1.5},{"\ufffd":0}],"text_offset":[5,6]})"));
}

TEST(LogprobsTest, WhatIsNotKnownOrTooSmallIsMinus9999) {
  OpenAiAnswer answer(Request(OpenAiEndpoint::kChat, false), "chatcmpl-1");
  DeltaEvent delta = Delta("x");
  delta.tokens = {Token("x", kNoLogProbability, 0)};
  EXPECT_EQ(Body(answer, delta)["choices"][0]["logprobs"]["content"][0]["logprob"], -9999.0);
}

TEST(LogprobsTest, TokensWithoutBytesSaySo) {
  OpenAiAnswer answer(Request(OpenAiEndpoint::kChat, false), "chatcmpl-1");
  DeltaEvent delta = Delta("x");
  delta.tokens = {Token("x", 0, 0), Token("", -1, 1)};
  EXPECT_EQ(Body(answer, delta)["choices"][0]["logprobs"]["content"][1]["bytes"], nullptr);
}

TEST(LogprobsTest, WithoutThemTheKeyIsNull) {
  OpenAiRequest request = Request(OpenAiEndpoint::kChat, false);
  request.generations[0].top_log_probabilities.reset();
  OpenAiAnswer answer(request, "chatcmpl-1");
  EXPECT_EQ(Body(answer, Delta("x"))["choices"][0]["logprobs"], nullptr);
}

// A client that read nothing for long gets its text in chunks of bounded size, each with exactly its tokens.
TEST(LogprobsTest, EachChunkHasTheTokensOfItsText) {
  for (const OpenAiEndpoint endpoint : {OpenAiEndpoint::kChat, OpenAiEndpoint::kCompletions}) {
    OpenAiAnswer answer(Request(endpoint, true), "id-1");
    answer.OnStarted(0, Started());
    DeltaEvent first = Delta("x");  // So that a chunk's last token would end inside a character.
    first.tokens = {Token("x", 0, 0)};
    answer.OnDelta(0, first);
    std::string sent = first.text;
    for (uint64_t i = 0; i < 700; ++i) {
      DeltaEvent delta = Delta("H\xC3\xA9");
      delta.tokens = {Token("H\xC3", -1, 1 + 2 * i), Token("\xA9", -2, 2 + 2 * i)};
      answer.OnDelta(0, delta);
      sent += delta.text;
    }
    answer.OnFinished(0, Finished());
    std::string stream, text;
    while (!answer.exhausted()) stream += answer.NextEvents();
    std::vector<std::string> events = ParseEvents(stream).value();
    size_t chunks = 0, tokens = 0;
    for (const std::string& event : events) {
      if (event == "[DONE]") break;
      const json choice = json::parse(event)["choices"][0];
      const std::string piece =
          endpoint == OpenAiEndpoint::kChat ? choice["delta"].value("content", "") : choice.value("text", "");
      text += piece;
      if (piece.empty()) continue;
      ++chunks;
      if (endpoint == OpenAiEndpoint::kChat) {
        std::string bytes;
        for (const json& token : choice["logprobs"]["content"]) {
          for (const int byte : token["bytes"]) bytes += static_cast<char>(byte);
          ++tokens;
        }
        EXPECT_EQ(bytes, piece);
      } else {
        tokens += choice["logprobs"]["tokens"].size();
        EXPECT_EQ(choice["logprobs"]["text_offset"].size(), choice["logprobs"]["tokens"].size());
      }
    }
    EXPECT_EQ(text, sent);
    EXPECT_EQ(tokens, 1401u);
    EXPECT_GT(chunks, 3u);
  }
}

TEST(LogprobsTest, AnAnswerSaysWhatWasRunAndWhetherThatIsApproximate) {
  OpenAiRequest request;
  request.generations.resize(1);
  const auto extension = [&](std::string_view policy, std::string_view cache) {
    OpenAiAnswer answer(request, "chatcmpl-1");
    answer.OnStarted(0, Started());
    FinishedEvent finished = Finished();
    finished.policy = policy;
    finished.cache = cache;
    answer.OnFinished(0, finished);
    json out = json::parse(answer.Body())["quicksilver"];
    out.erase("forwards");
    out.erase("tokens_per_forward");
    return out;
  };
  EXPECT_EQ(extension("", ""), json::object());
  EXPECT_EQ(extension("wino", "none"), json::parse(R"({"policy":"wino","cache":"none"})"));
  for (const char* cache : {"prefix", "dual", "vicinity"}) {
    EXPECT_EQ(extension("threshold", cache), json({{"policy", "threshold"}, {"cache", cache}, {"approximate", true}}));
  }
}

}  // namespace
}  // namespace quicksilver
