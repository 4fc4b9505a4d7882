// Hostile and careless clients against a real server over loopback (serving.md §7.4, §8.1; reliability.md 27).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/http/server.h"
#include "tests/http/http_cases.h"
#include "tests/http/raw_client.h"

namespace quicksilver::http {
namespace {

using ::testing::HasSubstr;

constexpr char kGet[] = "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";

std::unique_ptr<Server> Serve(ServerOptions options, std::atomic<int>* handled = nullptr) {
  auto server = std::make_unique<Server>(std::move(options));
  server->Route("GET", "/hello", [](const Request&) { return Response{.body = "hi"}; });
  server->Route("POST", "/echo", [handled](const Request& request) {
    if (handled != nullptr) ++*handled;
    return Response{.content_type = "text/plain", .body = request.body};
  });
  const absl::Status started = server->Start();
  EXPECT_TRUE(started.ok()) << started;
  return server;
}

class TrapTest : public testing::TestWithParam<HttpCase> {};

std::vector<HttpCase> FinishedCases() {
  std::vector<HttpCase> cases;
  for (HttpCase& one : HttpCases()) {
    if (one.status != 0) cases.push_back(std::move(one));
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cases, TrapTest, testing::ValuesIn(FinishedCases()),
                         [](const auto& one) { return one.param.name; });

// Whatever is refused closes the connection: a second request behind it, smuggled or not, is never executed.
TEST_P(TrapTest, IsAnsweredAndNothingBehindARefusalIsExecuted) {
  std::atomic<int> handled = 0;
  const std::unique_ptr<Server> server = Serve({.linger = absl::Milliseconds(50)}, &handled);
  RawClient client(server->port());
  client.Send(GetParam().bytes + "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nsmuggled");
  const RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.status, GetParam().status) << reply.body;
  if (reply.status == 200) {
    EXPECT_EQ(reply.body, GetParam().body);
    return;
  }
  EXPECT_EQ(reply.Header("connection"), "close");
  EXPECT_NE(reply.Header("x-request-id"), "");
  for (const char* key : {"\"message\":", "\"type\":\"invalid_request_error\"", "\"param\":null", "\"code\":"}) {
    EXPECT_THAT(reply.body, HasSubstr(key));
  }
  client.ReadAll();
  EXPECT_EQ(handled, 0);
}

TEST(ExpectTest, ContinueIsSentBeforeTheBody) {
  const std::unique_ptr<Server> server = Serve({});
  RawClient client(server->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.Read().status, 100);
  client.Send("abc");
  EXPECT_EQ(client.Read().body, "abc");
}

TEST(ExpectTest, TheFinalErrorComesInPlaceOfContinue) {
  const std::unique_ptr<Server> server = Serve({});
  for (const auto& [line, length, status] :
       {std::tuple{"POST /echo", "52428800", 413}, {"POST /nowhere", "3", 404}, {"PUT /echo", "3", 405}}) {
    RawClient client(server->port());
    client.Send(
        absl::StrCat(line, " HTTP/1.1\r\nHost: a\r\nContent-Length: ", length, "\r\nExpect: 100-continue\r\n\r\n"));
    EXPECT_EQ(client.Read().status, status);
  }
}

// A client that sends all of it before it reads must still see why.
TEST(BodyLimitTest, AClientThatSendsFiftyMegabytesReads413) {
  const std::unique_ptr<Server> server = Serve({});
  RawClient client(server->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 52428800\r\n\r\n");
  const std::string part(1024 * 1024, 'a');
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(client.Send(part));
  const RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.status, 413);
  EXPECT_THAT(reply.body, HasSubstr("52428800"));
  EXPECT_THAT(reply.body, HasSubstr("8388608"));
  RawClient next(server->port());
  next.Send(kGet);
  EXPECT_EQ(next.Read().status, 200);
}

TEST(TimeoutTest, ASlowHeadIs408) {
  const std::unique_ptr<Server> server =
      Serve({.header_timeout = absl::Milliseconds(200), .linger = absl::Milliseconds(50)});
  RawClient client(server->port());
  const absl::Time start = absl::Now();
  for (int i = 0; i < 100 && client.buffer().empty(); ++i) {
    client.Send(i == 0 ? "GET" : "x");
    if (client.ReadUntil("\r\n\r\n", absl::Milliseconds(20))) break;
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  const RawClient::Reply reply = client.Read();
  EXPECT_EQ(reply.status, 408);
  EXPECT_THAT(reply.body, HasSubstr("request_timeout"));
  EXPECT_TRUE(client.ClosedWithin(absl::Seconds(2)));
}

TEST(TimeoutTest, ASlowBodyIs408AfterTheGrace) {
  const std::unique_ptr<Server> server =
      Serve({.body_grace = absl::Milliseconds(200), .linger = absl::Milliseconds(50)});
  RawClient client(server->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
  const absl::Time start = absl::Now();
  while (!client.ReadUntil("\r\n\r\n", absl::Milliseconds(20)) && absl::Now() - start < absl::Seconds(5)) {
    client.Send("x");  // 50 bytes a second.
  }
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(180));
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  EXPECT_EQ(client.Read().status, 408);
}

TEST(TimeoutTest, ABodyAboveTheRateIsServed) {
  const std::unique_ptr<Server> server = Serve({.body_grace = absl::Milliseconds(100)});
  RawClient client(server->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n");
  for (int i = 0; i < 10; ++i) {
    client.Send(std::string(200, 'x'));  // 5,000 bytes a second.
    absl::SleepFor(absl::Milliseconds(40));
  }
  EXPECT_EQ(client.Read().status, 200);
}

TEST(TimeoutTest, TheWholeBodyHasADeadline) {
  const std::unique_ptr<Server> server = Serve({.body_timeout = absl::Milliseconds(300),
                                                .body_grace = absl::Milliseconds(100),
                                                .linger = absl::Milliseconds(50)});
  RawClient client(server->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
  const absl::Time start = absl::Now();
  while (!client.ReadUntil("\r\n\r\n", absl::Milliseconds(20)) && absl::Now() - start < absl::Seconds(5)) {
    client.Send(std::string(1000, 'x'));
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  EXPECT_EQ(client.Read().status, 408);
}

TEST(TimeoutTest, AnIdleConnectionClosesSilently) {
  const std::unique_ptr<Server> server = Serve({.idle_timeout = absl::Milliseconds(150)});
  RawClient silent(server->port()), used(server->port());
  used.Send(kGet);
  EXPECT_EQ(used.Read().status, 200);
  EXPECT_TRUE(silent.ClosedWithin(absl::Seconds(2)));
  EXPECT_TRUE(used.ClosedWithin(absl::Seconds(2)));
  EXPECT_EQ(silent.buffer() + used.buffer(), "");
}

TEST(ConnectionLimitTest, OneAddressGetsItsShare) {
  const std::unique_ptr<Server> server = Serve({.connections_per_address_max = 2});
  RawClient first(server->port()), second(server->port());
  first.Send(kGet);
  second.Send(kGet);
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  RawClient third(server->port());
  EXPECT_TRUE(third.ClosedWithin(absl::Seconds(2)));
  first.Close();
  while (server->connections() > 1) absl::SleepFor(absl::Milliseconds(1));
  RawClient fourth(server->port());
  fourth.Send(kGet);
  EXPECT_EQ(fourth.Read().status, 200);
}

TEST(ConnectionLimitTest, TheServerHasABound) {
  const std::unique_ptr<Server> server = Serve({.connections_max = 1});
  RawClient first(server->port());
  first.Send(kGet);
  EXPECT_EQ(first.Read().status, 200);
  RawClient second(server->port());
  EXPECT_TRUE(second.ClosedWithin(absl::Seconds(2)));
}

// Bad neighbours must not be felt: 100 slow-loris connections, and a good client beside them.
TEST(AbuseTest, GoodTrafficDoesNotWaitForBad) {
  const std::unique_ptr<Server> server = Serve({});
  std::vector<std::unique_ptr<RawClient>> bad;
  for (int i = 0; i < 100; ++i) {
    bad.push_back(std::make_unique<RawClient>(server->port()));
    bad.back()->Send(i % 2 == 0 ? "GET / HT" : "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nx");
  }
  RawClient good(server->port());
  const absl::Time start = absl::Now();
  for (int i = 0; i < 100; ++i) {
    good.Send(kGet);
    ASSERT_EQ(good.Read().status, 200);
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
}

}  // namespace
}  // namespace quicksilver::http
