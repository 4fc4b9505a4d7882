#include "common/http/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "tests/http/raw_client.h"

namespace quicksilver::http {
namespace {

using ::testing::HasSubstr;

constexpr char kGet[] = "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";

std::string Post(std::string_view path, std::string_view body, std::string_view headers = "") {
  return absl::StrCat("POST ", std::string(path), " HTTP/1.1\r\nHost: a\r\n", std::string(headers),
                      "Content-Length: ", body.size(), "\r\n\r\n", std::string(body));
}

class ServerTest : public testing::Test {
 protected:
  void Serve(ServerOptions options = {}) {
    server_ = std::make_unique<Server>(std::move(options));
    server_->Route("GET", "/hello", [this](const Request&) {
      ++hellos_;
      return Response{.content_type = "text/plain", .body = "hi"};
    });
    server_->Route("POST", "/echo",
                   [](const Request& request) { return Response{.content_type = "text/plain", .body = request.body}; });
    server_->Route("GET", "/models/*",
                   [](const Request& request) { return Response{.content_type = "text/plain", .body = request.rest}; });
    server_->RouteAsync("GET", "/wait", [this](Request, std::shared_ptr<Exchange> exchange) {
      exchange->OnEnd([this](EndReason reason) {
        MutexLock lock(mutex_);
        ended_ = reason;
        has_ended_ = true;
        changed_.NotifyAll();
      });
      MutexLock lock(mutex_);
      exchange_ = std::move(exchange);
      changed_.NotifyAll();
    });
    const absl::Status started = server_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }

  std::shared_ptr<Exchange> TakeExchange() {
    MutexLock lock(mutex_);
    while (!exchange_) changed_.Wait(mutex_);
    return std::exchange(exchange_, nullptr);
  }

  EndReason WaitForEnd() {
    MutexLock lock(mutex_);
    while (!has_ended_) changed_.Wait(mutex_);
    return ended_;
  }

  uint16_t port() const { return server_->port(); }

  std::atomic<int> hellos_{0};
  Mutex mutex_;
  CondVar changed_;
  std::shared_ptr<Exchange> exchange_ GUARDED_BY(mutex_);
  bool has_ended_ GUARDED_BY(mutex_) = false;
  EndReason ended_ GUARDED_BY(mutex_) = EndReason::kDone;
  std::unique_ptr<Server> server_;  // Stops first.
};

TEST_F(ServerTest, AnswersAndKeepsTheConnection) {
  Serve();
  RawClient client(port());
  for (int i = 0; i < 3; ++i) {
    client.Send(kGet);
    const RawClient::Reply reply = client.Read();
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, "hi");
    EXPECT_EQ(reply.Header("content-type"), "text/plain");
    EXPECT_NE(reply.Header("x-request-id"), "");
    EXPECT_THAT(reply.Header("date"), HasSubstr("GMT"));
  }
}

TEST_F(ServerTest, HeadIsGetWithoutTheBody) {
  Serve();
  RawClient client(port());
  client.Send("HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n");
  const RawClient::Reply reply = client.Read(/*has_body=*/false);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.Header("content-length"), "2");
  client.Send(kGet);
  EXPECT_EQ(client.Read().body, "hi");
}

TEST_F(ServerTest, ATrailingSlashIsServedAndPathsAreDecoded) {
  Serve();
  RawClient client(port());
  client.Send("GET /hello/ HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(client.Read().body, "hi");
  client.Send("GET /models/org%2Fname/?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(client.Read().body, "org/name");
}

TEST_F(ServerTest, UnknownRoutesAndMethodsHaveErrorBodies) {
  Serve();
  RawClient client(port());
  client.Send("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
  RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(
      reply.body,
      R"({"error":{"message":"There is no such route.","type":"invalid_request_error","param":null,"code":"not_found"}})");
  for (const char* method : {"DELETE", "OPTIONS"}) {
    client.Send(absl::StrCat(method, " /hello HTTP/1.1\r\nHost: a\r\n\r\n"));
    reply = client.Read();
    EXPECT_EQ(reply.status, 405);
    EXPECT_EQ(reply.Header("allow"), "GET, HEAD");
  }
}

TEST_F(ServerTest, Http10IsServedAndClosed) {
  Serve();
  RawClient client(port());
  client.Send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.Header("connection"), "close");
  EXPECT_TRUE(client.ClosedWithin(absl::Seconds(5)));
}

TEST_F(ServerTest, PipelinedRequestsAreAnsweredInOrder) {
  Serve();
  RawClient client(port());
  client.Send(Post("/echo", "one") + Post("/echo", "two") + kGet);
  EXPECT_EQ(client.Read().body, "one");
  EXPECT_EQ(client.Read().body, "two");
  EXPECT_EQ(client.Read().body, "hi");
}

TEST_F(ServerTest, ARequestBehindAnAsynchronousOneWaits) {
  Serve();
  RawClient client(port());
  client.Send(absl::StrCat("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n", kGet));
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  absl::SleepFor(absl::Milliseconds(30));
  EXPECT_EQ(hellos_, 0);
  exchange->Reply({.body = "{}"});
  EXPECT_EQ(client.Read().body, "{}");
  EXPECT_EQ(client.Read().body, "hi");
  EXPECT_EQ(WaitForEnd(), EndReason::kDone);
}

TEST_F(ServerTest, AValidRequestIdIsEchoedAndAnInvalidOneReplaced) {
  Serve();
  RawClient client(port());
  client.Send("GET /hello HTTP/1.1\r\nHost: a\r\nX-Request-Id: my.id-1_\r\n\r\n");
  EXPECT_EQ(client.Read().Header("x-request-id"), "my.id-1_");
  for (const std::string& bad : {std::string("a b"), std::string(129, 'a'), std::string("a/b")}) {
    client.Send(absl::StrCat("GET /hello HTTP/1.1\r\nHost: a\r\nX-Request-Id: ", bad, "\r\n\r\n"));
    const RawClient::Reply reply = client.Read();
    EXPECT_EQ(reply.status, 200);
    EXPECT_THAT(reply.Header("x-request-id"), testing::StartsWith("req_"));
  }
}

TEST_F(ServerTest, StreamsInChunksAndPings) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  exchange->StartStream({.content_type = "text/event-stream", .body = "a"},
                        {.ping = ": ping\n\n", .ping_interval = absl::Milliseconds(20)});
  ASSERT_TRUE(client.ReadUntil(": ping\n\n"));
  exchange->Write("b");
  exchange->Finish();
  const RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.Header("transfer-encoding"), "chunked");
  EXPECT_EQ(reply.Header("content-length"), "");
  EXPECT_THAT(reply.body, testing::MatchesRegex("a(: ping\n\n)+b"));
  client.Send(kGet);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServerTest, AnHttp10StreamHasNoChunks) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.0\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  exchange->StartStream({.content_type = "text/event-stream"}, {});
  exchange->Write("abc");
  exchange->Finish();
  const std::string all = client.ReadAll();
  EXPECT_EQ(all.substr(all.size() - 7), "\r\n\r\nabc");
}

TEST_F(ServerTest, WhatIsWrittenWhenDrainedIsTheNewestState) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  std::atomic<int> state{0};
  exchange->OnDrained([&] { exchange->Write(absl::StrCat("state ", state.load(), ";")); });
  exchange->StartStream({.body = "head;"}, {.drained_interval = absl::Milliseconds(200)});
  ASSERT_TRUE(client.ReadUntil("head;"));
  state = 1;
  exchange->AskDrained();
  ASSERT_TRUE(client.ReadUntil("state 1;"));
  for (state = 2; state < 9; ++state) exchange->AskDrained();
  ASSERT_TRUE(client.ReadUntil("state 9;"));
  exchange->AskDrained();
  exchange->Finish();
  EXPECT_EQ(client.Read().body, "head;state 1;state 9;");
}

TEST_F(ServerTest, ResetIsNotAnOrderlyEnd) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  exchange->StartStream({.body = "a"}, {});
  ASSERT_TRUE(client.ReadUntil("a"));
  exchange->Reset();
  bool reset = false;
  client.ReadAll(&reset);
  EXPECT_TRUE(reset);
}

TEST_F(ServerTest, AClientThatLeavesEndsItsExchange) {
  for (const bool streaming : {false, true}) {
    SCOPED_TRACE(streaming);
    Serve();
    {
      MutexLock lock(mutex_);
      has_ended_ = false;
    }
    RawClient client(port());
    client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    const std::shared_ptr<Exchange> exchange = TakeExchange();
    if (streaming) {
      exchange->StartStream({.body = "a"}, {});
      ASSERT_TRUE(client.ReadUntil("a"));
    }
    client.Close();
    EXPECT_EQ(WaitForEnd(), EndReason::kClientGone);
    EXPECT_TRUE(exchange->Write("b"));
    exchange->Finish();
  }
}

TEST_F(ServerTest, HalfAClosedConnectionCountsAsClosed) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  client.CloseWriting();
  EXPECT_EQ(WaitForEnd(), EndReason::kClientGone);
}

TEST_F(ServerTest, ADroppedExchangeIsA500) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  TakeExchange().reset();
  const RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.status, 500);
  EXPECT_THAT(reply.body, HasSubstr("internal_error"));
}

// The engine must not wait for a slow reader, and must learn when it may go on.
TEST_F(ServerTest, AReaderThatStopsIsBoundedAndThenReset) {
  Serve({.write_stall_timeout = absl::Milliseconds(300)});
  RawClient client(port(), /*receive_buffer_bytes=*/4096);
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  exchange->StartStream({}, {.budget_bytes = 64 * 1024});
  const std::string data(8 * 1024, 'x');
  int taken = 0;
  while (taken < 4096 && exchange->Write(data)) {
    ++taken;
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_LT(taken, 4096);
  EXPECT_LE(exchange->buffered_bytes(), 64 * 1024 + data.size());
  EXPECT_EQ(server_->buffered_bytes(), exchange->buffered_bytes());
  EXPECT_EQ(WaitForEnd(), EndReason::kStalled);
  EXPECT_EQ(server_->buffered_bytes(), 0);
  bool reset = false;
  client.ReadAll(&reset);
  EXPECT_TRUE(reset);
}

TEST_F(ServerTest, AReaderThatComesBackGetsEverything) {
  Serve();
  RawClient client(port(), /*receive_buffer_bytes=*/4096);
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  std::atomic<bool> writable = false;
  exchange->OnWritable([&writable] { writable = true; });
  exchange->StartStream({}, {.budget_bytes = 64 * 1024});
  const std::string data(8 * 1024, 'x');
  size_t taken = 0;
  while (exchange->Write(data)) {
    taken += data.size();
    absl::SleepFor(absl::Milliseconds(1));
  }
  std::thread writer([&] {
    while (!writable) absl::SleepFor(absl::Milliseconds(1));
    while (!exchange->Write("end")) absl::SleepFor(absl::Milliseconds(1));
    exchange->Finish();
  });
  EXPECT_EQ(client.Read().body.size(), taken + 3);
  writer.join();
}

TEST_F(ServerTest, StopLetsARequestFinishAndClosesIdleConnections) {
  Serve();
  RawClient idle(port()), busy(port());
  idle.Send(kGet);
  idle.Read();
  busy.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  std::thread stopper([this] { server_->Stop(absl::Seconds(10)); });
  EXPECT_TRUE(idle.ClosedWithin(absl::Seconds(5)));
  exchange->Reply({.body = "{}"});
  const RawClient::Reply reply = busy.Read();
  EXPECT_EQ(reply.body, "{}");
  EXPECT_EQ(reply.Header("connection"), "close");
  EXPECT_TRUE(busy.ClosedWithin(absl::Seconds(5)));
  stopper.join();
  EXPECT_EQ(server_->connections(), 0);
}

TEST_F(ServerTest, StopResetsWhatDoesNotEnd) {
  Serve();
  RawClient client(port());
  client.Send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::shared_ptr<Exchange> exchange = TakeExchange();
  server_->Stop(absl::Milliseconds(50));
  EXPECT_EQ(WaitForEnd(), EndReason::kServerStopped);
  bool reset = false;
  client.ReadAll(&reset);
  EXPECT_TRUE(reset);
}

TEST_F(ServerTest, APortInUseIsNamed) {
  Serve();
  Server second({.port = port()});
  const absl::Status status = second.Start();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("127.0.0.1:", port())));
  EXPECT_THAT(std::string(status.message()), HasSubstr("in use"));
}

TEST_F(ServerTest, SeveralThreadsShareTheConnections) {
  Serve({.threads = 3});
  for (int i = 0; i < 9; ++i) {
    RawClient client(port());
    client.Send(kGet);
    EXPECT_EQ(client.Read().status, 200);
  }
}

}  // namespace
}  // namespace quicksilver::http
