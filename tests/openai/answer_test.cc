#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "coordinator/frontend/http/openai_answer.h"
#include "coordinator/frontend/http/openai_reply.h"
#include "tests/openai/scripted_inference.h"
#include "tests/openai/sse_parser.h"

namespace quicksilver {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

OpenAiRequest Request(const std::string& fields, OpenAiEndpoint endpoint = OpenAiEndpoint::kChat) {
  const std::string input =
      endpoint == OpenAiEndpoint::kChat ? R"("messages":[{"role":"user","content":"hi"}])" : R"("prompt":["p0","p1"])";
  auto parsed = ParseOpenAiRequest("{" + fields + R"("model":"m",)" + input + "}", endpoint, {});
  return std::get<OpenAiRequest>(std::move(parsed));
}

// The parsed data of every event but [DONE], which must be the last.
std::vector<json> Chunks(const std::string& stream) {
  std::vector<std::string> events = ParseEvents(stream).value();
  EXPECT_FALSE(events.empty());
  EXPECT_EQ(events.back(), "[DONE]");
  events.pop_back();
  std::vector<json> chunks;
  for (const std::string& event : events) chunks.push_back(json::parse(event));
  return chunks;
}

TEST(OpenAiAnswerTest, AChatStreamIsExactlyAsSpecified) {
  OpenAiAnswer answer(Request(R"("stream":true,"stream_options":{"include_usage":true},)"), "chatcmpl-1");
  const std::string head =
      R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795430400,"model":"m","system_fingerprint":"fp_0123456789","choices":)";
  answer.OnStarted(0, Started());
  EXPECT_EQ(
      answer.NextEvents(),
      head +
          R"([{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null})"
          "\n\n");
  answer.OnDelta(0, {0, "Hello", 1, 3});
  EXPECT_EQ(
      answer.NextEvents(),
      head +
          R"([{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":null,"quicksilver":{"step":3,"block":1}})"
          "\n\n");
  EXPECT_EQ(answer.NextEvents(), "");
  EXPECT_FALSE(answer.complete());
  answer.OnFinished(0, Finished(3));
  EXPECT_TRUE(answer.complete());
  EXPECT_EQ(answer.first_finish_reason(), "stop");
  EXPECT_EQ(
      answer.NextEvents(),
      head +
          R"([{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null,"quicksilver":{"step":3,"forwards":2,"tokens_per_forward":1.5}})"
          "\n\n" +
          head +
          R"([],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"quicksilver":{"forwards":2,"tokens_per_forward":1.5}})"
          "\n\ndata: [DONE]\n\n");
  EXPECT_EQ(answer.NextEvents(), "");
}

TEST(OpenAiAnswerTest, WithoutIncludeUsageNoChunkHasTheKey) {
  OpenAiAnswer answer(Request(R"("stream":true,)"), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.OnDelta(0, Delta("a"));
  answer.OnFinished(0, Finished());
  const std::string stream = answer.NextEvents();
  EXPECT_THAT(stream, Not(HasSubstr("usage")));
  EXPECT_EQ(Chunks(stream).size(), 3);
}

TEST(OpenAiAnswerTest, AChatBodyIsExactlyAsSpecified) {
  OpenAiAnswer answer(Request(""), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.OnDelta(0, Delta("Hel"));
  answer.OnDelta(0, Delta("lo!"));
  answer.OnFinished(0, Finished(3, 0, FinishReason::kLength));
  EXPECT_EQ(
      answer.Body(),
      R"({"id":"chatcmpl-1","object":"chat.completion","created":1795430400,"model":"m","system_fingerprint":"fp_0123456789","service_tier":"default","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!","refusal":null},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"quicksilver":{"forwards":2,"tokens_per_forward":1.5}})");
}

TEST(OpenAiAnswerTest, ChoicesInterleaveAndEachHasOneRoleAndOneFinish) {
  OpenAiAnswer answer(Request(R"("stream":true,"n":3,)"), "chatcmpl-1");
  std::string stream;
  const auto pump = [&] { stream += answer.NextEvents(); };
  answer.OnStarted(0, Started());
  pump();
  answer.OnDelta(0, Delta("b1", 1));
  pump();
  answer.OnDelta(0, Delta("a1", 0));
  answer.OnFinished(0, Finished(1, 1));
  pump();
  answer.OnDelta(0, Delta("a2", 0));
  pump();
  answer.OnFinished(0, Finished(2, 0));
  pump();
  answer.OnFinished(0, Finished(0, 2, FinishReason::kLength));
  pump();
  std::vector<std::string> text(3), finish(3);
  std::vector<int> roles(3);
  for (const json& chunk : Chunks(stream)) {
    const json& choice = chunk["choices"][0];
    const size_t index = choice["index"];
    EXPECT_TRUE(finish[index].empty()) << "a chunk after the finish of choice " << index;
    if (choice["delta"].contains("role")) {
      EXPECT_EQ(text[index], "");
      ++roles[index];
    }
    text[index] += choice["delta"].value("content", "");
    if (!choice["finish_reason"].is_null()) {
      finish[index] = choice["finish_reason"];
      EXPECT_TRUE(choice["delta"].empty());
    }
  }
  EXPECT_THAT(text, ElementsAre("a1a2", "b1", ""));
  EXPECT_THAT(roles, ElementsAre(1, 1, 1));
  EXPECT_THAT(finish, ElementsAre("stop", "stop", "length"));
}

// The text of a client that was slow for a while is not cut into the pieces it was made of.
TEST(OpenAiAnswerTest, TextThatCouldNotBeSentIsJoined) {
  OpenAiAnswer answer(Request(R"("stream":true,)"), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.NextEvents();
  for (int i = 0; i < 1000; ++i) answer.OnDelta(0, Delta("x", 0, static_cast<uint32_t>(i)));
  const std::vector<std::string> events = ParseEvents(answer.NextEvents()).value();
  ASSERT_EQ(events.size(), 1);
  const json chunk = json::parse(events[0]);
  EXPECT_EQ(chunk["choices"][0]["delta"]["content"], std::string(1000, 'x'));
  EXPECT_EQ(chunk["quicksilver"]["step"], 999);
}

TEST(OpenAiAnswerTest, AVeryLongTextIsCutBetweenCharacters) {
  OpenAiAnswer answer(Request(R"("stream":true,)"), "chatcmpl-1");
  answer.OnStarted(0, Started());
  std::string all = "a";
  for (int i = 0; i < 50'000; ++i) all += "\xF0\x9F\x98\x80";
  answer.OnDelta(0, Delta(all));
  answer.OnFinished(0, Finished());
  std::string stream;
  while (!answer.exhausted()) {
    const std::string events = answer.NextEvents();
    ASSERT_FALSE(events.empty());
    EXPECT_LT(events.size(), 80'000);
    stream += events;
  }
  std::string text;
  for (const json& chunk : Chunks(stream)) text += chunk["choices"][0]["delta"].value("content", "");
  EXPECT_EQ(text, all);
}

std::vector<std::string> HostileTexts() {
  return {"line\nbreak\r\nand\rreturn",
          "data: {\"x\":1}\n\n",
          "data: [DONE]\n\n",
          "[DONE]",
          "\xE2\x80\xA8 and \xE2\x80\xA9",
          "</script><script>alert(1)</script>",
          std::string("nul \0 and \x01\x1f\x7f", 11),
          "\"quotes\" and \\backslashes\\ \\u0041 \\n",
          "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7",
          "\xD9\x85\xD8\xB1\xD8\xAD\xD8\xA8\xD8\xA7",
          ": comment\nevent: error\nid: 7\nretry: 1\n",
          "\xEF\xBB\xBF bom"};
}

TEST(OpenAiAnswerTest, HostileTextComesThroughUnchanged) {
  std::string all;
  OpenAiAnswer streamed(Request(R"("stream":true,)"), "chatcmpl-1"), whole(Request(""), "chatcmpl-1");
  std::string stream;
  for (OpenAiAnswer* answer : {&streamed, &whole}) answer->OnStarted(0, Started());
  for (const std::string& text : HostileTexts()) {
    all += text;
    for (OpenAiAnswer* answer : {&streamed, &whole}) answer->OnDelta(0, Delta(text));
    stream += streamed.NextEvents();
  }
  for (OpenAiAnswer* answer : {&streamed, &whole}) answer->OnFinished(0, Finished());
  stream += streamed.NextEvents();
  std::string text;
  for (const json& chunk : Chunks(stream)) text += chunk["choices"][0]["delta"].value("content", "");
  EXPECT_EQ(text, all);
  EXPECT_EQ(json::parse(whole.Body())["choices"][0]["message"]["content"], all);
}

TEST(OpenAiAnswerTest, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  OpenAiAnswer answer(Request(""), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.OnDelta(0, Delta("a\xFF\xC3(\xED\xA0\x80z"));
  answer.OnFinished(0, Finished());
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(json::parse(answer.Body())["choices"][0]["message"]["content"], "a" + r + r + "(" + r + r + r + "z");
}

TEST(OpenAiAnswerTest, ADiffusingStreamReplacesAndEndsWithTheFinalText) {
  OpenAiAnswer answer(Request(R"("stream":true,"diffusing":true,)"), "chatcmpl-1");
  std::string stream;
  answer.OnStarted(0, Started());
  stream += answer.NextEvents();
  answer.OnFrame(0, {.step = 3, .extent = 2, .spans = {{SpanOp::kReplace, 0, 2, "zz"}}});
  answer.OnFrame(
      0,
      {.step = 4, .committed = 1, .extent = 5, .spans = {{SpanOp::kFinal, 0, 1, "ab"}, {SpanOp::kCommit, 1, 1, "xy"}}});
  stream += answer.NextFrames();
  EXPECT_EQ(answer.NextFrames(), "");
  answer.OnDelta(0, {0, "ab", 0, 5});
  EXPECT_EQ(answer.NextEvents(), "");
  answer.OnDelta(0, {0, "cd", 1, 9});
  answer.OnFinished(0, Finished());
  answer.OnFrame(0, {.step = 9, .committed = 2, .extent = 2, .spans = {{SpanOp::kFinal, 1, 1, "cd"}}});
  EXPECT_EQ(answer.NextFrames(), "");
  stream += answer.NextEvents();
  const std::vector<json> chunks = Chunks(stream);
  ASSERT_EQ(chunks.size(), 4);
  for (const json& chunk : chunks) EXPECT_EQ(chunk["quicksilver"]["mode"], "replace");
  EXPECT_EQ(chunks[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(chunks[1]["choices"][0]["delta"]["content"], "abxy\xE2\x96\x91\xE2\x96\x91\xE2\x96\x91");
  EXPECT_EQ(chunks[1]["quicksilver"]["step"], 4);
  EXPECT_EQ(chunks[2]["choices"][0]["delta"]["content"], "abcd");
  EXPECT_EQ(chunks[3]["choices"][0]["finish_reason"], "stop");
}

TEST(OpenAiAnswerTest, ADiffusingStreamDoesNotRepeatACanvasThatIsTheAnswer) {
  for (const bool sent : {false, true}) {
    OpenAiAnswer answer(Request(R"("stream":true,"diffusing":true,)"), "chatcmpl-1");
    answer.OnStarted(0, Started());
    std::string stream = answer.NextEvents();
    answer.OnDelta(0, Delta("ab"));
    answer.OnFrame(0, {.committed = 1, .extent = 1, .spans = {{SpanOp::kFinal, 0, 1, "ab"}}});
    if (sent) stream += answer.NextFrames();
    answer.OnFinished(0, Finished());
    const std::vector<json> chunks = Chunks(stream + answer.NextEvents());
    ASSERT_EQ(chunks.size(), 3) << sent;
    EXPECT_EQ(chunks[1]["choices"][0]["delta"]["content"], "ab");
  }
}

TEST(OpenAiAnswerTest, FramesAreChunksWithAnEmptyDelta) {
  OpenAiAnswer answer(Request(R"("stream":true,"n":2,"quicksilver":{"canvases":true},)"), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.NextEvents();
  answer.OnFrame(0, {1, 4, 2, 7, 1, 5, {{SpanOp::kFinal, 0, 1, "a\n"}, {SpanOp::kReplace, 2, 1, "b"}}});
  const std::vector<std::string> events = ParseEvents(answer.NextFrames()).value();
  ASSERT_EQ(events.size(), 1);
  const json chunk = json::parse(events[0]);
  EXPECT_EQ(chunk["choices"], json::parse(R"([{"index":1,"delta":{},"logprobs":null,"finish_reason":null}])"));
  EXPECT_EQ(chunk["quicksilver"],
            json::parse(R"({"frame":{"step":4,"block":2,"epoch":7,"committed":1,"extent":5,"spans":[
                {"op":"final","first":0,"tokens":1,"text":"a\n"},{"op":"replace","first":2,"tokens":1,"text":"b"}]}})"));
}

TEST(OpenAiAnswerTest, TheLastFrameComesBeforeTheEndOfItsChoice) {
  OpenAiAnswer answer(Request(R"("stream":true,"quicksilver":{"canvases":true},)"), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.OnFrame(0, {.committed = 1, .extent = 1, .spans = {{SpanOp::kFinal, 0, 1, "a"}}});
  answer.OnDelta(0, Delta("a"));
  answer.OnFinished(0, Finished());
  const std::vector<json> chunks = Chunks(answer.NextEvents());
  ASSERT_EQ(chunks.size(), 4);
  EXPECT_TRUE(chunks[2]["quicksilver"].contains("frame"));
  EXPECT_EQ(chunks[3]["choices"][0]["finish_reason"], "stop");
}

TEST(OpenAiAnswerTest, TheEndSaysWhatHappenedOnTheWay) {
  FinishedEvent end = Finished(3, 1);
  end.cached_tokens = 8;
  end.resumes = 2;
  end.paced_steps = 5;
  end.deadline_reached = true;
  FinishedEvent first = Finished(3, 0);
  first.cached_tokens = 4;
  OpenAiAnswer answer(Request(R"("n":2,"service_tier":"fast",)"), "chatcmpl-1");
  answer.OnStarted(0, Started());
  answer.OnFinished(0, first);
  answer.OnFinished(0, end);
  const json body = json::parse(answer.Body());
  EXPECT_EQ(body["service_tier"], "priority");
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 4) << "the prompt counts once";
  EXPECT_EQ(body["quicksilver"], json::parse(R"({"forwards":4,"tokens_per_forward":1.5,"resumed":2,"paced_steps":5,
                                                 "deadline_reached":true})"));
  OpenAiAnswer streamed(Request(R"("stream":true,"service_tier":"flex",)"), "chatcmpl-1");
  streamed.OnStarted(0, Started());
  end.choice = 0;
  streamed.OnFinished(0, end);
  const std::vector<json> chunks = Chunks(streamed.NextEvents());
  for (const json& chunk : chunks) EXPECT_EQ(chunk["service_tier"], "default");
  EXPECT_EQ(chunks.back()["quicksilver"]["resumed"], 2);
}

TEST(OpenAiAnswerTest, CompletionsOfSeveralPromptsAreIndexedByPromptAndChoice) {
  OpenAiAnswer answer(Request(R"("n":2,"echo":true,)", OpenAiEndpoint::kCompletions), "cmpl-1");
  answer.OnStarted(1, Started(5));
  answer.OnDelta(1, Delta("d", 1));
  answer.OnFinished(1, Finished(1, 1));
  answer.OnStarted(0, Started(7));
  for (const auto& [prompt, choice, text] : {std::tuple{0, 0, "a"}, {0, 1, "b"}, {1, 0, "c"}}) {
    answer.OnDelta(static_cast<size_t>(prompt), Delta(text, static_cast<uint32_t>(choice)));
    EXPECT_FALSE(answer.complete());
    answer.OnFinished(static_cast<size_t>(prompt), Finished(1, static_cast<uint32_t>(choice)));
  }
  ASSERT_TRUE(answer.complete());
  const json body = json::parse(answer.Body());
  EXPECT_EQ(body["object"], "text_completion");
  std::vector<std::string> texts;
  for (const json& choice : body["choices"]) {
    EXPECT_EQ(choice["index"], texts.size());
    texts.push_back(choice["text"]);
  }
  EXPECT_THAT(texts, ElementsAre("p0a", "p0b", "p1c", "p1d"));
  EXPECT_EQ(body["usage"]["prompt_tokens"], 12);
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);
  EXPECT_EQ(body["usage"]["total_tokens"], 16);
}

TEST(OpenAiAnswerTest, ACompletionStreamKeepsItsObjectName) {
  OpenAiAnswer answer(Request(R"("stream":true,"echo":true,)", OpenAiEndpoint::kCompletions), "cmpl-1");
  for (size_t prompt : {0, 1}) {
    answer.OnStarted(prompt, Started());
    answer.OnDelta(prompt, Delta("x"));
    answer.OnFinished(prompt, Finished(1));
  }
  std::vector<std::string> texts(2);
  int finishes = 0;
  for (const json& chunk : Chunks(answer.NextEvents())) {
    EXPECT_EQ(chunk["object"], "text_completion");
    EXPECT_FALSE(chunk["choices"][0].contains("delta"));
    texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"];
    finishes += !chunk["choices"][0]["finish_reason"].is_null();
  }
  EXPECT_THAT(texts, ElementsAre("p0x", "p1x"));
  EXPECT_EQ(finishes, 2);
}

TEST(OpenAiAnswerTest, ZeroTokensWithEchoGiveThePromptAlone) {
  OpenAiAnswer answer(Request(R"("max_tokens":0,"echo":true,)", OpenAiEndpoint::kCompletions), "cmpl-1");
  for (size_t prompt : {0, 1}) {
    answer.OnStarted(prompt, Started(2));
    answer.OnDelta(prompt, Delta("thrown away"));
    answer.OnFinished(prompt, Finished(1));
  }
  const json body = json::parse(answer.Body());
  EXPECT_EQ(body["choices"][0]["text"], "p0");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
}

TEST(OpenAiAnswerTest, AFailureBehindTheHeadIsAnErrorEventAndDone) {
  EXPECT_EQ(
      ErrorEvents(WorkerLost()),
      R"(data: {"error":{"message":"The worker group that ran this request was lost.","type":"server_error","param":null,"code":"worker_lost"}})"
      "\n\ndata: [DONE]\n\n");
}

std::string HeaderOf(const http::Response& response, std::string_view name) {
  for (const http::Header& header : response.headers) {
    if (header.name == name) return header.value;
  }
  return "";
}

TEST(OpenAiReplyTest, ErrorsCarryTheirRetryHeaders) {
  const http::Response busy = ToResponse(Overloaded("full", 7));
  EXPECT_EQ(busy.status, 503);
  EXPECT_EQ(HeaderOf(busy, "retry-after"), "7");
  EXPECT_EQ(HeaderOf(busy, "x-should-retry"), "");
  ApiError without_time = Overloaded("full", 0);
  EXPECT_EQ(HeaderOf(ToResponse(without_time), "retry-after"), "1");
  const http::Response undelivered = ToResponse(NotImplementedError("tools", "no"));
  EXPECT_EQ(undelivered.status, 501);
  EXPECT_EQ(HeaderOf(undelivered, "x-should-retry"), "false");
  EXPECT_EQ(HeaderOf(undelivered, "retry-after"), "");
  EXPECT_EQ(undelivered.body,
            R"({"error":{"message":"no","type":"server_error","param":"tools","code":"not_implemented"}})");
}

TEST(OpenAiReplyTest, RatesAreHeadersWhereSomethingIsLimited) {
  EXPECT_TRUE(RateHeaders({}).empty());
  ApiError error = RateLimited("60 requests a minute are allowed.", 3);
  error.rates.requests = RateStatus{60, 0, absl::Milliseconds(11.2)};
  error.rates.tokens = RateStatus{1000, 17, absl::Seconds(3722.5)};
  const http::Response response = ToResponse(error);
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(HeaderOf(response, "retry-after"), "3");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-limit-requests"), "60");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-remaining-requests"), "0");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-reset-requests"), "12ms");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-remaining-tokens"), "17");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-reset-tokens"), "1h2m3s");
  error.rates.tokens->reset = absl::Minutes(6);
  EXPECT_EQ(HeaderOf(ToResponse(error), "x-ratelimit-reset-tokens"), "6m0s");
}

TEST(OpenAiReplyTest, ModelsAreListedForBothKindsOfClient) {
  const json list = json::parse(ModelListBody({{"a/b", 1795430400, 4096, true, "sdar", {"static", "wino"}, true}}));
  EXPECT_EQ(list["data"][0], json::parse(R"({"id":"a/b","object":"model","created":1795430400,
                                             "owned_by":"organization","max_model_len":4096,
                                             "quicksilver":{"family":"sdar","policies":["static","wino"],"infill":true}})"));
  EXPECT_EQ(list["models"][0]["name"], "a/b");
  EXPECT_EQ(list["models"][0]["release_date"], "2026-11-23");
}

TEST(OpenAiReplyTest, OnlyJsonIsAccepted) {
  const auto accepts = [](const std::string& type) { return IsJsonContentType(&type); };
  EXPECT_TRUE(accepts("application/json"));
  EXPECT_TRUE(accepts("Application/JSON; charset=UTF-8"));
  EXPECT_TRUE(accepts("application/json;charset=\"utf-8\""));
  EXPECT_FALSE(accepts("application/json; charset=latin1"));
  EXPECT_FALSE(accepts("application/jsonp"));
  EXPECT_FALSE(accepts("text/plain"));
  EXPECT_FALSE(accepts(""));
  EXPECT_FALSE(IsJsonContentType(nullptr));
}

}  // namespace
}  // namespace quicksilver
