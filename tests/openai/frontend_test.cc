// The OpenAI routes over a real server on loopback, with scripted generations behind them.
#include <gmock/gmock.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/openai/frontend_fixture.h"

namespace quicksilver {
namespace {

using http::RawClient;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(OpenAiFrontendTest, ChatsUnderEveryAlias) {
  Serve();
  for (const char* path : {"/v1/chat/completions", "/v1/chat/completions/", "/openai/v1/chat/completions"}) {
    const RawClient::Reply reply = Send(Post(path, R"({"model":"m","messages":[{"role":"user","content":"x"}]})"));
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(json::parse(reply.body)["choices"][0]["message"]["content"], "answer to x");
    EXPECT_EQ(reply.Header("content-type"), "application/json");
    EXPECT_EQ(reply.Header("openai-version"), "2020-10-01");
    EXPECT_NE(reply.Header("openai-processing-ms"), "");
    EXPECT_NE(reply.Header("x-request-id"), "");
  }
  EXPECT_TRUE(Eventually([&] { return observer_.requests().size() == 3; }));
  const std::string ok = "/v1/chat/completions 200 stop";
  EXPECT_THAT(observer_.requests(), ElementsAre(ok, ok, ok));
}

TEST_F(OpenAiFrontendTest, StreamsWithTheHeadersOfServerSentEvents) {
  Serve();
  const RawClient::Reply reply = Send(Chat("x", R"("stream":true,)"));
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.Header("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(reply.Header("cache-control"), "no-cache");
  EXPECT_EQ(reply.Header("x-accel-buffering"), "no");
  EXPECT_EQ(reply.Header("content-length"), "");
  const auto events = ParseEvents(reply.body);
  ASSERT_TRUE(events);
  EXPECT_EQ(events->size(), 4);
  EXPECT_EQ(events->back(), "[DONE]");
}

TEST_F(OpenAiFrontendTest, TheStreamedTextIsTheWholeText) {
  Serve();
  const json whole = json::parse(Send(Chat("x", R"("n":3,)")).body);
  std::vector<std::string> texts(3);
  for (const std::string& event : Events(Send(Chat("x", R"("stream":true,"n":3,)")).body)) {
    if (event == "[DONE]") continue;
    const json choice = json::parse(event)["choices"][0];
    texts[choice["index"]] += choice["delta"].value("content", "");
  }
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(whole["choices"][i]["message"]["content"], texts[i]);
}

TEST_F(OpenAiFrontendTest, CompletesSeveralPrompts) {
  Serve();
  const RawClient::Reply reply = Send(Post("/v1/completions", R"({"model":"m","prompt":["a","b"],"n":2})"));
  const json body = json::parse(reply.body);
  ASSERT_EQ(body["choices"].size(), 4);
  EXPECT_EQ(body["choices"][1]["text"], "answer to a");
  EXPECT_EQ(body["choices"][2]["text"], "answer to b");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 18);
  const std::vector<GenerateRequest> requests = inference_.requests();
  ASSERT_EQ(requests.size(), 2);
  EXPECT_NE(requests[0].request_id, requests[1].request_id);
  EXPECT_THAT(requests[0].request_id, testing::StartsWith(body["id"].get<std::string>()));
}

TEST_F(OpenAiFrontendTest, FillsInTheMiddle) {
  Serve();
  const RawClient::Reply reply = Send(Post("/v1/fim/completions", R"({"model":"m","prompt":"a","suffix":"b"})"));
  EXPECT_EQ(reply.status, 200);
  const json body = json::parse(reply.body);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["text"], "answer to a");
  EXPECT_EQ(std::get<std::string>(inference_.requests()[0].infill.suffix), "b");
  EXPECT_EQ(inference_.requests()[0].presence_penalty, 1.5f);
  EXPECT_TRUE(Eventually([&] { return observer_.requests().size() == 1; }));
  EXPECT_EQ(observer_.requests()[0], "/v1/fim/completions 200 stop");
}

// Equal x-request-id headers must not make two requests one (reliability.md 34).
TEST_F(OpenAiFrontendTest, RequestsWithTheSameIdHeaderStayApart) {
  Serve();
  const std::string headers = "Content-Type: application/json\r\nX-Request-Id: same\r\n";
  const std::string body = R"({"model":"m","messages":[{"role":"user","content":"x"}]})";
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Send(Post("/v1/chat/completions", body, headers)).Header("x-request-id"), "same");
  }
  EXPECT_NE(inference_.requests()[0].request_id, inference_.requests()[1].request_id);
}

TEST_F(OpenAiFrontendTest, StreamsWithTheSameIdHeaderNeverCross) {
  Serve();
  std::vector<std::thread> clients;
  std::vector<std::string> texts(8);
  for (size_t i = 0; i < texts.size(); ++i) {
    clients.emplace_back([this, i, &texts] {
      const std::string body =
          absl::StrCat(R"({"model":"m","stream":true,"messages":[{"role":"user","content":"q)", i, R"("}]})");
      const std::string headers = "Content-Type: application/json\r\nX-Request-Id: same\r\n";
      for (const std::string& event : Events(Send(Post("/v1/chat/completions", body, headers)).body)) {
        if (event != "[DONE]") texts[i] += json::parse(event)["choices"][0]["delta"].value("content", "");
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i], absl::StrCat("answer to q", i));
}

TEST_F(OpenAiFrontendTest, TheTenantIsWhomTheProxyNames) {
  Serve({}, {.tenant_header = "x-tenant"});
  const auto ask = [this](const std::string& headers) {
    const std::string body = R"({"model":"m","messages":[{"role":"user","content":"x"}]})";
    return Send(Post("/v1/chat/completions", body, "Content-Type: application/json\r\n" + headers));
  };
  EXPECT_EQ(ask("X-Tenant: acme\r\n").status, 200);
  EXPECT_EQ(ask("").status, 200);
  EXPECT_EQ(inference_.requests()[0].tenant, "acme");
  EXPECT_EQ(inference_.requests()[1].tenant, "default");
  for (const std::string& headers : {std::string("X-Tenant: a\r\nX-Tenant: b\r\n"), std::string("X-Tenant: a b\r\n"),
                                     "X-Tenant: " + std::string(129, 'a') + "\r\n"}) {
    const RawClient::Reply reply = ask(headers);
    EXPECT_EQ(reply.status, 400) << headers;
    EXPECT_EQ(json::parse(reply.body)["error"]["param"], "x-tenant");
  }
  EXPECT_EQ(inference_.requests().size(), 2);
}

TEST_F(OpenAiFrontendTest, WithoutTheOptionNoHeaderNamesATenant) {
  Serve();
  EXPECT_EQ(Send(Post("/v1/chat/completions", R"({"model":"m","messages":[{"role":"user","content":"x"}]})",
                      "Content-Type: application/json\r\nX-Tenant: acme\r\n"))
                .status,
            200);
  EXPECT_EQ(inference_.requests()[0].tenant, "default");
}

TEST_F(OpenAiFrontendTest, RatesAreInTheHeadOfAnswersAndRefusalsSayWhenToComeBack) {
  Serve();
  for (const char* fields : {"", R"("stream":true,)"}) {
    EXPECT_EQ(Send(Chat("rates", fields)).Header("x-ratelimit-remaining-requests"), "59") << fields;
    EXPECT_EQ(Send(Chat("x", fields)).Header("x-ratelimit-remaining-requests"), "") << fields;
  }
  const RawClient::Reply limited = Send(Chat("limited", R"("stream":true,)"));
  EXPECT_EQ(limited.status, 429);
  EXPECT_EQ(limited.Header("retry-after"), "3");
  EXPECT_EQ(json::parse(limited.body)["error"]["code"], "rate_limit_exceeded");
}

TEST_F(OpenAiFrontendTest, ListsAndFindsModels) {
  Serve();
  EXPECT_EQ(json::parse(Get("/v1/models").body)["data"].size(), 2);
  EXPECT_EQ(json::parse(Get("/v1/models/m").body)["max_model_len"], 4096);
  for (const char* path : {"/v1/models/org/name", "/v1/models/org%2Fname", "/openai/v1/models/org/name/"}) {
    EXPECT_EQ(json::parse(Get(path).body)["id"], "org/name") << path;
  }
  const RawClient::Reply missing = Get("/v1/models/none");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(json::parse(missing.body)["error"]["code"], "model_not_found");
}

TEST_F(OpenAiFrontendTest, HealthFollowsReadiness) {
  Serve();
  for (const char* path : {"/health", "/health/live", "/health/ready"}) {
    EXPECT_EQ(Get(path).body, "{\"status\":\"ok\"}") << path;
  }
  EXPECT_EQ(Get("/ping").body, "");
  EXPECT_EQ(Get("/version").body, R"({"version":"1.2.3"})");
  inference_.SetNotReady(NoReadyWorker("No group is ready."));
  for (const char* path : {"/health", "/health/ready", "/ping"}) {
    const RawClient::Reply reply = Get(path);
    EXPECT_EQ(reply.status, 503) << path;
    EXPECT_EQ(json::parse(reply.body)["error"]["code"], "no_ready_worker");
    EXPECT_EQ(reply.Header("retry-after"), "2");
  }
  EXPECT_EQ(Get("/health/live").status, 200);
}

TEST_F(OpenAiFrontendTest, WhatIsNotDeliveredSaysSo) {
  Serve();
  for (const char* path : {"/v1/responses", "/v1/decisions", "/v1/systemone", "/v1/edit/completions", "/tokenize"}) {
    const RawClient::Reply reply = Send(Post(path, "{}"));
    EXPECT_EQ(reply.status, 501) << path;
    EXPECT_EQ(reply.Header("x-should-retry"), "false");
    EXPECT_EQ(json::parse(reply.body)["error"]["code"], "not_implemented");
  }
  EXPECT_EQ(Get("/v1/responses/resp_1").status, 404);
  EXPECT_EQ(Get("/v1/nothing").status, 404);
}

TEST_F(OpenAiFrontendTest, MethodsAndMediaTypesAreChecked) {
  Serve();
  const RawClient::Reply get = Get("/v1/chat/completions");
  EXPECT_EQ(get.status, 405);
  EXPECT_EQ(get.Header("allow"), "POST");
  EXPECT_EQ(json::parse(get.body)["error"]["code"], "method_not_allowed");
  for (const char* headers :
       {"", "Content-Type: text/plain\r\n", "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"}) {
    const RawClient::Reply reply = Send(Post("/v1/chat/completions", "{}", headers));
    EXPECT_EQ(reply.status, 415) << headers;
    EXPECT_EQ(json::parse(reply.body)["error"]["code"], "unsupported_media_type");
  }
  EXPECT_THAT(observer_.requests(), testing::Contains("unknown 405"));
}

TEST_F(OpenAiFrontendTest, KeysInAnyHeaderAreAccepted) {
  Serve();
  for (const char* key : {"Authorization: Bearer k\r\n", "authorization: bearer k\r\n", "api-key: k\r\n",
                          "x-api-key: k\r\n", "OpenAI-Organization: o\r\nOpenAI-Project: p\r\n"}) {
    const std::string body = R"({"model":"m","messages":[{"role":"user","content":"x"}]})";
    EXPECT_EQ(Send(Post("/v1/chat/completions", body, absl::StrCat("Content-Type: application/json\r\n", key))).status,
              200);
  }
}

// reliability.md 26: fast, typed, and the connection stays usable.
TEST_F(OpenAiFrontendTest, MalformedBodiesAre400AndTheConnectionLives) {
  Serve();
  RawClient client(server_->port());
  const std::string deep = std::string(100'000, '[');
  for (const std::string& body : {std::string("{"), std::string("\xff"), std::string("{\"a\":\"\0\"}", 9), deep,
                                  std::string("{\"a\":1e999}"), std::string("{\"seed\":99999999999999999999}"),
                                  std::string("{\"a\":\"\\ud800\"}"), std::string("[]"), std::string("")}) {
    client.Send(Post("/v1/chat/completions", body));
    const absl::Time start = absl::Now();
    const RawClient::Reply reply = client.Read();
    EXPECT_LT(absl::Now() - start, absl::Milliseconds(200));
    EXPECT_EQ(reply.status, 400);
    const json error = json::parse(reply.body)["error"];
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_TRUE(error.contains("param") && error.contains("code") && error.contains("message"));
  }
  client.Send(Chat("x"));
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(OpenAiFrontendTest, ARefusalBeforeTheFirstEventIsAStatusEvenForAStream) {
  Serve();
  const RawClient::Reply busy = Send(Chat("overloaded", R"("stream":true,)"));
  EXPECT_EQ(busy.status, 503);
  EXPECT_EQ(busy.Header("retry-after"), "3");
  EXPECT_EQ(json::parse(busy.body)["error"]["code"], "server_is_overloaded");
  EXPECT_EQ(Send(Chat("unknown model")).status, 404);
  EXPECT_TRUE(Eventually([&] { return observer_.requests().size() == 2; }));
  EXPECT_THAT(observer_.requests(), ElementsAre("/v1/chat/completions 503", "/v1/chat/completions 404"));
}

// reliability.md 33: never a clean end without a finish_reason or an error.
TEST_F(OpenAiFrontendTest, AFailureMidwayIsAnErrorEvent) {
  Serve();
  const std::vector<std::string> events = Events(Send(Chat("fails midway", R"("stream":true,)")).body);
  ASSERT_GE(events.size(), 3);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(json::parse(events[events.size() - 2])["error"]["code"], "worker_lost");
  const RawClient::Reply whole = Send(Chat("fails midway"));
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(json::parse(whole.body)["error"]["code"], "worker_lost");
}

TEST_F(OpenAiFrontendTest, OneFailedPromptFailsAndCancelsTheOthers) {
  Serve();
  const RawClient::Reply reply = Send(Post("/v1/completions", R"({"model":"m","prompt":["never ends","overloaded"]})"));
  EXPECT_EQ(reply.status, 503);
  EXPECT_TRUE(Eventually([&] { return inference_.running() == 0; }));
  EXPECT_EQ(inference_.cancelled(), 1);
}

// reliability.md 25: queued, running, streamed or not.
TEST_F(OpenAiFrontendTest, AClientThatLeavesCancelsItsGeneration) {
  Serve();
  int expected = 0;
  for (const char* text : {"never starts", "never ends"}) {
    for (const char* fields : {"", R"("stream":true,)"}) {
      SCOPED_TRACE(absl::StrCat(text, fields));
      RawClient client(server_->port());
      client.Send(Chat(text, fields));
      ASSERT_TRUE(Eventually([&] { return inference_.running() == 1; }));
      absl::SleepFor(absl::Milliseconds(10));
      client.Close();
      EXPECT_TRUE(Eventually([&] { return inference_.running() == 0; }));
      EXPECT_EQ(inference_.cancelled(), ++expected);
      EXPECT_TRUE(Eventually([&] { return observer_.gone == expected; }));
    }
  }
  EXPECT_THAT(observer_.requests(), testing::Each("/v1/chat/completions 499"));
}

// A fixed sequence of moments between the first byte of the request and the last of the answer.
TEST_F(OpenAiFrontendTest, LeavingAtAnyMomentLeavesNothingBehind) {
  Serve();
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    RawClient client(server_->port());
    const std::string request = Chat(i % 3 == 0 ? "never ends" : "x", i % 2 == 0 ? R"("stream":true,"n":2,)" : "");
    client.Send(request.substr(0, i % 5 == 0 ? random() % request.size() : request.size()));
    absl::SleepFor(absl::Microseconds(random() % 600));
  }
  EXPECT_TRUE(Eventually([&] { return inference_.running() == 0; }));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
  EXPECT_EQ(server_->buffered_bytes(), 0);
  EXPECT_EQ(Send(Chat("x")).status, 200);
}

TEST_F(OpenAiFrontendTest, PingsKeepAQuietStreamOpen) {
  Serve({}, {.ping_interval = absl::Milliseconds(30)});
  RawClient client(server_->port());
  client.Send(Chat("never ends", R"("stream":true,)"));
  EXPECT_TRUE(client.ReadUntil(": ping\n\n"));
}

TEST_F(OpenAiFrontendTest, RetriesOfSdksAreCounted) {
  Serve();
  for (const char* count : {"0", "1", "2"}) {
    Send(Post("/v1/chat/completions", "{}",
              absl::StrCat("Content-Type: application/json\r\nX-Stainless-Retry-Count: ", count, "\r\n")));
  }
  EXPECT_EQ(observer_.retries, 2);
}

TEST_F(OpenAiFrontendTest, StoppingTheServerResetsAStreamThatDoesNotEnd) {
  Serve();
  RawClient client(server_->port());
  client.Send(Chat("never ends", R"("stream":true,)"));
  ASSERT_TRUE(client.ReadUntil("Hello"));
  server_->Stop(absl::Milliseconds(50));
  EXPECT_EQ(inference_.running(), 0);
  bool reset = false;
  EXPECT_THAT(client.ReadAll(&reset), testing::Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(reset);
}

}  // namespace
}  // namespace quicksilver
