// Clients that read slowly, late or not at all, over a real server on loopback.
#include <gmock/gmock.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "coordinator/frontend/client_canvas.h"
#include "tests/openai/frontend_fixture.h"

namespace quicksilver {
namespace {

using http::RawClient;
using nlohmann::json;

using SlowReaderTest = OpenAiFrontendTest;

TEST_F(SlowReaderTest, SlowReadersAreNotFeltByOthers) {
  Serve({}, {.stream_budget_bytes = 32 * 1024});
  std::vector<std::unique_ptr<RawClient>> slow;
  for (int i = 0; i < 50; ++i) {
    slow.push_back(std::make_unique<RawClient>(server_->port(), /*receive_buffer_bytes=*/4096));
    slow.back()->Send(Chat("flood", R"("stream":true,)"));
  }
  ASSERT_TRUE(Eventually([&] { return inference_.requests().size() == 50 && inference_.running() == 0; }));
  EXPECT_LE(server_->buffered_bytes(), 50u * 128 * 1024);
  const absl::Time start = absl::Now();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(Send(Chat("x")).status, 200);
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
}

// reliability.md 24.
TEST_F(SlowReaderTest, AReaderThatStopsIsResetAndCancelled) {
  Serve({.write_stall_timeout = absl::Milliseconds(300)}, {.stream_budget_bytes = 64 * 1024});
  RawClient client(server_->port(), /*receive_buffer_bytes=*/4096);
  client.Send(Chat("flood", R"("stream":true,)"));
  EXPECT_TRUE(Eventually([&] { return observer_.slow == 1; }));
  EXPECT_LE(server_->buffered_bytes(), 128u * 1024);
  bool reset = false;
  client.ReadAll(&reset);
  EXPECT_TRUE(reset);
  EXPECT_EQ(Send(Chat("x")).status, 200);
}

TEST_F(SlowReaderTest, ASlowReaderGetsTheWholeTextInFewerPieces) {
  Serve({}, {.stream_budget_bytes = 64 * 1024});
  RawClient client(server_->port(), /*receive_buffer_bytes=*/4096);
  client.Send(Chat("flood", R"("stream":true,)"));
  ASSERT_TRUE(Eventually([&] { return inference_.running() == 0; }));
  size_t characters = 0, chunks = 0;
  for (const std::string& event : Events(client.Read().body)) {
    if (event == "[DONE]") continue;
    ++chunks;
    characters += json::parse(event)["choices"][0]["delta"].value("content", "").size();
  }
  EXPECT_EQ(characters, 3'000'000);
  EXPECT_LT(chunks, 1500u);
}

FrameEvent FrameOf(const json& chunk) {
  const json& frame = chunk["quicksilver"]["frame"];
  FrameEvent event{.step = frame["step"], .committed = frame["committed"], .extent = frame["extent"]};
  for (const json& span : frame["spans"]) {
    const SpanOp op = span["op"] == "final"    ? SpanOp::kFinal
                      : span["op"] == "commit" ? SpanOp::kCommit
                                               : SpanOp::kReplace;
    event.spans.push_back({op, span["first"], span["tokens"], span["text"]});
  }
  return event;
}

// Provisional frames go first: fewer come, and the canvas is exact all the same.
TEST_F(SlowReaderTest, ALateReaderOfFramesHasTheExactCanvas) {
  Serve({.stream_send_buffer_bytes = 4096}, {.stream_budget_bytes = 8 * 1024});
  RawClient client(server_->port(), /*receive_buffer_bytes=*/2048);
  client.Send(Chat("frames", R"("stream":true,"quicksilver":{"canvases":true},)"));
  ASSERT_TRUE(Eventually([&] { return inference_.requests().size() == 1 && inference_.running() == 0; }));
  EXPECT_LE(server_->buffered_bytes(), 32u * 1024);
  ClientCanvas canvas;
  std::string text;
  int frames = 0;
  bool finished = false;
  for (const std::string& event : Events(client.Read().body)) {
    if (event == "[DONE]") continue;
    const json chunk = json::parse(event);
    EXPECT_FALSE(finished);
    text += chunk["choices"][0]["delta"].value("content", "");
    finished = !chunk["choices"][0]["finish_reason"].is_null();
    if (!chunk.contains("quicksilver") || !chunk["quicksilver"].contains("frame")) continue;
    ++frames;
    canvas.Apply(FrameOf(chunk));
  }
  EXPECT_EQ(text, std::string(60'000, 'x'));
  EXPECT_EQ(canvas.final_text(), text);
  EXPECT_EQ(canvas.Text("?"), text);
  EXPECT_LT(frames, 100) << "of 200";
}

TEST_F(SlowReaderTest, ALateReaderOfADiffusingStreamGetsTheNewestCanvasAlone) {
  Serve({.stream_send_buffer_bytes = 4096}, {.stream_budget_bytes = 8 * 1024});
  RawClient client(server_->port(), /*receive_buffer_bytes=*/2048);
  client.Send(Chat("frames", R"("stream":true,"diffusing":true,)"));
  ASSERT_TRUE(Eventually([&] { return inference_.requests().size() == 1 && inference_.running() == 0; }));
  std::string shown;
  int canvases = 0;
  for (const std::string& event : Events(client.Read().body)) {
    if (event == "[DONE]") continue;
    const json chunk = json::parse(event);
    EXPECT_EQ(chunk["quicksilver"]["mode"], "replace");
    if (!chunk["choices"][0]["delta"].contains("content")) continue;
    shown = chunk["choices"][0]["delta"]["content"];
    ++canvases;
  }
  EXPECT_EQ(shown, std::string(60'000, 'x')) << "the last canvas is the answer";
  EXPECT_LT(canvases, 20) << "of 200";
}

}  // namespace
}  // namespace quicksilver
