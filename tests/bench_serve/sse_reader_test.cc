#include "tools/bench_serve/sse_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

constexpr std::string_view kStream =
    ": ping\n\ndata: {\"a\":1}\n\nevent: x\ndata: two\r\ndata:lines\r\n\r\nid: 7\n\ndata: [DONE]\n\n";

std::vector<std::string> Read(std::string_view stream, size_t piece_bytes) {
  SseReader reader;
  std::vector<std::string> events;
  for (size_t at = 0; at < stream.size(); at += piece_bytes) {
    EXPECT_TRUE(reader.Feed(stream.substr(at, piece_bytes), events));
  }
  return events;
}

TEST(SseReaderTest, GivesTheSameEventsHoweverTheStreamIsCut) {
  for (size_t piece_bytes = 1; piece_bytes <= kStream.size(); ++piece_bytes) {
    EXPECT_THAT(Read(kStream, piece_bytes), ElementsAre("{\"a\":1}", "two\nlines", "[DONE]")) << piece_bytes;
  }
}

TEST(SseReaderTest, ALoneCarriageReturnEndsALine) {
  for (const size_t piece_bytes : {1, 3, 100}) {
    EXPECT_THAT(Read("data: a\r\rdata: b\r\n\r\ndata: c\n\n", piece_bytes), ElementsAre("a", "b", "c")) << piece_bytes;
  }
}

TEST(SseReaderTest, KeepsBackAnEventThatIsNotWhole) { EXPECT_THAT(Read("data: a\n\ndata: b\n", 4), ElementsAre("a")); }

TEST(SseReaderTest, RefusesAnEventWithoutEnd) {
  SseReader reader;
  std::vector<std::string> events;
  const std::string piece(SseReader::kEventBytesMax / 2, 'x');
  EXPECT_TRUE(reader.Feed("data: " + piece, events));
  EXPECT_FALSE(reader.Feed(piece, events));
  EXPECT_FALSE(reader.Feed("\n\n", events));
  EXPECT_THAT(events, ElementsAre());
}

}  // namespace
}  // namespace quicksilver
