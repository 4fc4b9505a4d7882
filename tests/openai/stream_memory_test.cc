// What an idle stream costs the coordinator: all of it, in this process, with its clients and a scripted group.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/frontend/http/openai_frontend.h"
#include "coordinator/service/inference_service.h"
#include "tests/coordinator/scripted_group.h"
#include "tests/http/raw_client.h"

namespace quicksilver {
namespace {

constexpr size_t kStreams = 2000;
constexpr size_t kBytesMax = 64 * 1024;

size_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

class CountingObserver : public OpenAiObserver {
 public:
  void OnRequest(const std::string&, int, const std::string&) override {}
  void OnClientGone() override {}
  void OnSlowClient() override {}
  void OnSdkRetry() override {}
};

class StreamMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    v1::GroupInfo info = DemoGroup(*text_, kStreams + 64);
    info.set_pages_total(1'000'000);
    group_ = std::make_unique<ScriptedGroup>(info);
    // Every stream gets its first block and then waits.
    group_->OnSubmit([this](const v1::Submit& submit) {
      group_->Send(
          FinalTokens(submit, *text_->Encode("Hello", 100), static_cast<uint32_t>(submit.prompt_ids_size()), 1));
    });
    InferenceOptions options;
    options.cluster.discovery.sources = {*ParseWorkerSource("", group_->address())};
    metrics_ = std::make_unique<Metrics>("demo");
    service_ = InferenceService::Create(options, text_, *metrics_);
    frontend_ = std::make_unique<OpenAiFrontend>(*service_, OpenAiOptions{}, observer_);
    http::ServerOptions server;
    server.connections_per_address_max = kStreams + 64;
    server_ = std::make_unique<http::Server>(server);
    frontend_->Register(*server_);
    ASSERT_TRUE(server_->Start().ok());
    const absl::Time end = absl::Now() + absl::Seconds(10);
    while (service_->NotReady() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  }

  std::unique_ptr<http::RawClient> Open(const std::string& fields) {
    auto client = std::make_unique<http::RawClient>(server_->port());
    const std::string body = absl::StrCat("{", fields, R"("model":"demo","stream":true,"max_tokens":256,)",
                                          R"("messages":[{"role":"user","content":"hi"}]})");
    client->Send(absl::StrCat("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n",
                              "Content-Length: ", body.size(), "\r\n\r\n", body));
    EXPECT_TRUE(client->ReadUntil("Hello", absl::Seconds(30)));
    return client;
  }

  void Measure(const char* kind, const std::string& fields) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "a sanitizer's own memory would be measured";
#endif
    std::vector<std::unique_ptr<http::RawClient>> clients;
    for (size_t i = 0; i < 50; ++i) clients.push_back(Open(fields));
    const size_t before = ResidentBytes();
    for (size_t i = 0; i < kStreams; ++i) clients.push_back(Open(fields));
    const size_t each = (ResidentBytes() - before) / kStreams;
    std::printf("%zu idle %s streams: %zu bytes of resident memory each\n", kStreams, kind, each);
    EXPECT_LE(each, kBytesMax);
    clients.clear();
    EXPECT_TRUE(service_->WaitIdle(absl::Seconds(30)));
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  CountingObserver observer_;
  std::unique_ptr<ScriptedGroup> group_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<OpenAiFrontend> frontend_;
  std::unique_ptr<http::Server> server_;  // Stops first.
};

TEST_F(StreamMemoryTest, AnIdleStreamIsSmall) { Measure("plain", ""); }

TEST_F(StreamMemoryTest, AnIdleStreamOfFramesIsSmall) { Measure("frame", R"("quicksilver":{"canvases":true},)"); }

}  // namespace
}  // namespace quicksilver
