#include "common/http/request_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "tests/http/http_cases.h"

namespace quicksilver::http {
namespace {

using State = RequestReader::State;

struct Outcome {
  int status = 0;
  std::string body;
  bool operator==(const Outcome& other) const { return status == other.status && body == other.body; }
};

// Feeds `bytes` in pieces of `piece`.
Outcome ReadInPieces(std::string_view bytes, size_t piece, std::string* rest = nullptr) {
  RequestReader reader({});
  std::string input;
  while (true) {
    State state = reader.Read(input);
    while (state == State::kHead) state = reader.Read(input);
    if (rest != nullptr) *rest = input + std::string(bytes);
    if (state == State::kRefused) return {reader.refusal().status, ""};
    if (state == State::kComplete) return {200, reader.request().body};
    if (bytes.empty()) return {0, ""};
    input += bytes.substr(0, piece);
    bytes.remove_prefix(std::min(piece, bytes.size()));
  }
}

class RequestReaderTest : public testing::TestWithParam<HttpCase> {};

INSTANTIATE_TEST_SUITE_P(Cases, RequestReaderTest, testing::ValuesIn(HttpCases()),
                         [](const auto& one) { return one.param.name; });

TEST_P(RequestReaderTest, JudgesTheSameHoweverTheBytesArrive) {
  const Outcome expected{GetParam().status, GetParam().body};
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{7}, size_t{1000}, GetParam().bytes.size()}) {
    SCOPED_TRACE(piece);
    const Outcome outcome = ReadInPieces(GetParam().bytes, piece);
    EXPECT_EQ(outcome.status, expected.status);
    EXPECT_EQ(outcome.body, expected.body);
  }
}

TEST(RequestReaderTest, LeavesTheNextRequestInTheBuffer) {
  const std::string next = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  for (const char* first : {"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
                            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
                            "POST /echo HTTP/1.1\r\nHost: a\r\n\r\n"}) {
    std::string rest;
    EXPECT_EQ(ReadInPieces(first + next, std::string::npos, &rest).status, 200);
    EXPECT_EQ(rest, next);
  }
}

TEST(RequestReaderTest, TrailersDoNotBecomeHeaders) {
  RequestReader reader({});
  std::string input =
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: evil\r\n\r\n";
  ASSERT_EQ(reader.Read(input), State::kHead);
  ASSERT_EQ(reader.Read(input), State::kComplete);
  EXPECT_EQ(reader.request().Find("authorization"), nullptr);
  EXPECT_NE(reader.request().Find("host"), nullptr);
}

TEST(RequestReaderTest, AChunkedBodyIsBoundedToo) {
  RequestReader reader({.body_bytes_max = 100});
  std::string input = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  ASSERT_EQ(reader.Read(input), State::kHead);
  input += "64\r\n" + std::string(100, 'a') + "\r\n";
  EXPECT_EQ(reader.Read(input), State::kNeedsMore);
  input += "1\r\na\r\n";
  ASSERT_EQ(reader.Read(input), State::kRefused);
  EXPECT_EQ(reader.refusal().status, 413);
}

// A body of one-byte chunks costs the parser six bytes a byte: it ends long before the body limit.
TEST(RequestReaderTest, TinyChunksAreRefused) {
  RequestReader reader({});
  std::string input = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  ASSERT_EQ(reader.Read(input), State::kHead);
  size_t fed = 0;
  State state = State::kNeedsMore;
  while (state == State::kNeedsMore && fed < 10'000'000) {
    for (int i = 0; i < 1000; ++i) input += "1\r\na\r\n";
    fed += 1000;
    state = reader.Read(input);
  }
  EXPECT_EQ(state, State::kRefused);
  EXPECT_EQ(reader.refusal().status, 400);
  EXPECT_LT(fed, 20'000u);
}

TEST(RequestReaderTest, SplitsTheTarget) {
  RequestReader reader({});
  std::string input = "GET /a%2Fb%20c//?x=1&y=%41 HTTP/1.1\r\nHost: a\r\nX-Y: Z\r\n\r\n";
  ASSERT_EQ(reader.Read(input), State::kHead);
  const Request& request = reader.request();
  EXPECT_EQ(request.path, "/a/b c");
  EXPECT_EQ(request.query, "x=1&y=%41");
  EXPECT_EQ(request.target, "/a%2Fb%20c//?x=1&y=%41");
  EXPECT_EQ(*request.Find("x-y"), "Z");
  EXPECT_EQ(request.method, "GET");
}

}  // namespace
}  // namespace quicksilver::http
