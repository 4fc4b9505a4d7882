#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "coordinator/frontend/http/openai_frontend.h"
#include "tests/http/raw_client.h"
#include "tests/openai/scripted_inference.h"
#include "tests/openai/sse_parser.h"

namespace quicksilver {

// Writes each request down as "route code finish_reason".
class RecordingObserver : public OpenAiObserver {
 public:
  void OnRequest(const std::string& route, int code, const std::string& finish_reason) override {
    MutexLock lock(mutex_);
    requests_.push_back(absl::StrCat(route, " ", code, finish_reason.empty() ? "" : " ", finish_reason));
  }
  void OnClientGone() override { ++gone; }
  void OnSlowClient() override { ++slow; }
  void OnSdkRetry() override { ++retries; }
  std::vector<std::string> requests() const {
    MutexLock lock(mutex_);
    return requests_;
  }
  std::atomic<int> gone{0}, slow{0}, retries{0};

 private:
  mutable Mutex mutex_;
  std::vector<std::string> requests_ GUARDED_BY(mutex_);
};

// A canvas of 600 tokens of 100 bytes in blocks of 30: each step commits three, from behind.
inline void AddFrames(uint32_t choice, Script& script) {
  constexpr uint32_t kTokens = 600, kBlock = 30;
  const auto text = [](uint32_t tokens) { return std::string(100 * tokens, 'x'); };
  uint32_t step = 0;
  for (uint32_t block = 0; block < kTokens; block += kBlock) {
    for (uint32_t left = kBlock; left > 0; left -= 3) {
      const uint32_t first = block + left - 3;
      FrameEvent frame{.choice = choice, .step = ++step, .committed = block, .extent = block + kBlock};
      const SpanOp op = step == 1 ? SpanOp::kReplace : SpanOp::kCommit;
      frame.spans = {{op, first, block + kBlock - first, text(block + kBlock - first)}};
      if (left == 3) {
        script.emplace_back(DeltaEvent{choice, text(kBlock), block / kBlock, step});
        frame.committed = block + kBlock;
        frame.spans = {{SpanOp::kFinal, block, kBlock, text(kBlock)}};
      }
      script.emplace_back(frame);
    }
  }
}

inline Script ScriptFor(const GenerateRequest& request) {
  const std::string text = LastText(request);
  if (text == "overloaded") return {Overloaded("The queue is full.", 3)};
  if (text == "limited") return {RateLimited("60 requests a minute are allowed.", 3)};
  if (text == "rates") {
    StartedEvent started = Started();
    started.rates.requests = RateStatus{60, 59, absl::Seconds(1)};
    return {started, Delta("x"), Finished()};
  }
  if (text == "unknown model") return {ModelNotFound(request.model)};
  if (text == "fails midway") return {Started(), Delta("Hel"), absl::Milliseconds(20), Delta("lo"), WorkerLost()};
  if (text == "never ends") return {Started(), Delta("Hello"), absl::Hours(1), Finished()};
  if (text == "never starts") return {absl::Hours(1), Started(), Finished()};
  Script script = {Started()};
  for (uint32_t choice = 0; choice < request.choices; ++choice) {
    if (text == "flood") {
      for (int i = 0; i < 3000; ++i) script.emplace_back(Delta(std::string(1000, 'x'), choice));
    } else if (text == "frames") {
      AddFrames(choice, script);
    } else {
      script.emplace_back(Delta(absl::StrCat("answer to ", text), choice));
    }
    script.emplace_back(Finished(3, choice));
  }
  return script;
}

class OpenAiFrontendTest : public testing::Test {
 protected:
  void Serve(http::ServerOptions options = {}, OpenAiOptions openai = {}) {
    openai.version = "1.2.3";
    frontend_ = std::make_unique<OpenAiFrontend>(inference_, openai, observer_);
    frontend_->Configure(options);
    server_ = std::make_unique<http::Server>(options);
    frontend_->Register(*server_);
    const absl::Status started = server_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }

  static std::string Post(const std::string& path, const std::string& body,
                          const std::string& headers = "Content-Type: application/json\r\n") {
    return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: a\r\n", headers, "Content-Length: ", body.size(), "\r\n\r\n",
                        body);
  }
  static std::string Chat(const std::string& text, const std::string& fields = "") {
    return Post("/v1/chat/completions",
                absl::StrCat("{", fields, R"("model":"m","messages":[{"role":"user","content":")", text, "\"}]}"));
  }
  http::RawClient::Reply Send(const std::string& request) {
    http::RawClient client(server_->port());
    client.Send(request);
    return client.Read();
  }
  http::RawClient::Reply Get(const std::string& path) { return Send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n"); }

  static std::vector<std::string> Events(const std::string& stream) {
    std::optional<std::vector<std::string>> events = ParseEvents(stream);
    EXPECT_TRUE(events) << stream.substr(0, 200);
    return std::move(events).value_or(std::vector<std::string>());
  }

  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (int i = 0; i < 5000 && !condition(); ++i) absl::SleepFor(absl::Milliseconds(1));
    return condition();
  }

  RecordingObserver observer_;
  ScriptedInference inference_{ScriptFor};
  std::unique_ptr<OpenAiFrontend> frontend_;
  std::unique_ptr<http::Server> server_;  // Stops first.
};

}  // namespace quicksilver
