#include "tools/bench_serve/response_reader.h"

#include <gtest/gtest.h>

namespace quicksilver {
namespace {

constexpr const char* kChunked =
    "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n";

TEST(ResponseReaderTest, JoinsChunksHoweverTheyAreCut) {
  const std::string wire = kChunked;
  for (size_t piece_bytes = 1; piece_bytes <= wire.size(); ++piece_bytes) {
    ResponseReader reader;
    std::string input, body;
    for (size_t at = 0; at < wire.size(); at += piece_bytes) {
      input += wire.substr(at, piece_bytes);
      ASSERT_TRUE(reader.Read(input, body).ok()) << piece_bytes;
    }
    EXPECT_EQ(body, "hello world") << piece_bytes;
    EXPECT_TRUE(reader.complete() && reader.keep_alive() && reader.event_stream()) << piece_bytes;
  }
}

TEST(ResponseReaderTest, HandsOnABodyBeforeItIsWhole) {
  ResponseReader reader;
  std::string input = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nab", body;
  ASSERT_TRUE(reader.Read(input, body).ok());
  EXPECT_EQ(body, "ab");
  EXPECT_EQ(reader.status(), 503);
  EXPECT_FALSE(reader.complete());
  EXPECT_FALSE(reader.event_stream());
  EXPECT_FALSE(reader.ReadEnd().ok());
}

TEST(ResponseReaderTest, ReadsOneResponseBehindAnother) {
  ResponseReader reader;
  std::string input = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nb",
              body;
  ASSERT_TRUE(reader.Read(input, body).ok());
  ASSERT_TRUE(reader.complete());
  reader.Reset();
  ASSERT_TRUE(reader.Read(input, body).ok());
  EXPECT_EQ(body, "ab");
  EXPECT_EQ(reader.status(), 201);
}

TEST(ResponseReaderTest, ABodyWithoutLengthEndsWithTheConnection) {
  ResponseReader reader;
  std::string input = "HTTP/1.0 200 OK\r\n\r\nall", body;
  ASSERT_TRUE(reader.Read(input, body).ok());
  EXPECT_FALSE(reader.complete());
  EXPECT_TRUE(reader.ReadEnd().ok());
  EXPECT_TRUE(reader.complete());
  EXPECT_FALSE(reader.keep_alive());
}

TEST(ResponseReaderTest, RefusesWhatIsNotHttp) {
  ResponseReader reader;
  std::string input = "SSH-2.0-OpenSSH_9.2\r\n\r\n", body;
  EXPECT_FALSE(reader.Read(input, body).ok());
}

TEST(ResponseReaderTest, AConnectionThatSaidNothingIsNoAnswer) {
  ResponseReader reader;
  EXPECT_FALSE(reader.ReadEnd().ok());
}

}  // namespace
}  // namespace quicksilver
