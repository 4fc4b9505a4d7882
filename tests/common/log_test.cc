#include "common/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(LogTest, ALineIsOneJsonObjectWithTimeLevelComponentAndFields) {
  ASSERT_TRUE(InitLog("worker", "info"));
  testing::internal::CaptureStderr();
  LogWarning("group lost", {{"group", "a\"b"}, {"epoch", 7}, {"seconds", 0.5}, {"ready", false}});
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, MatchesRegex("\\{\"ts\":\"[0-9-]+T[0-9:.]+Z\",\"level\":\"warning\",.*\\}\n"));
  EXPECT_THAT(line, AllOf(HasSubstr("\"component\":\"worker\""), HasSubstr("\"msg\":\"group lost\""),
                          HasSubstr("\"group\":\"a\\\"b\""), HasSubstr("\"epoch\":7,\"seconds\":0.5,\"ready\":false")));
}

TEST(LogTest, LinesBelowTheLevelAreNotWritten) {
  ASSERT_TRUE(InitLog("worker", "error"));
  testing::internal::CaptureStderr();
  LogWarning("quiet");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_FALSE(InitLog("worker", "loud"));
  ASSERT_TRUE(InitLog("worker", "info"));
}

// A reader of our log that stands still must not stop us.
TEST(LogTest, LinesThatNobodyTakesAreDroppedAndCountedAndTheNextOneSaysSo) {
  ASSERT_TRUE(InitLog("worker", "info"));
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_GT(fcntl(ends[1], F_SETPIPE_SZ, 4096), 0);
  const int saved = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  const uint64_t before = LogLinesDropped();
  for (int i = 0; i < 100; ++i) LogInfo("a line that is rather long", {{"number", i}});
  const uint64_t dropped = LogLinesDropped() - before;
  std::string text(1 << 16, '\0');
  text.resize(static_cast<size_t>(read(ends[0], text.data(), text.size())));
  LogInfo("again");
  std::string last(1 << 12, '\0');
  last.resize(static_cast<size_t>(read(ends[0], last.data(), last.size())));
  dup2(saved, STDERR_FILENO);
  for (const int descriptor : {saved, ends[0], ends[1]}) close(descriptor);
  const auto written = static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n'));
  EXPECT_GT(written, 0u);
  EXPECT_EQ(written + dropped, 100u);
  EXPECT_THAT(last, HasSubstr("\"msg\":\"again\",\"lines_dropped\":" + std::to_string(dropped)));
}

TEST(JsonQuotedTest, EscapesControlsAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(JsonQuoted("a\n\x01\\\""), "\"a\\u000a\\u0001\\\\\\\"\"");
  EXPECT_EQ(JsonQuoted("سلام 😀"), "\"سلام 😀\"");
  EXPECT_EQ(JsonQuoted("x\xC3"), "\"x\xEF\xBF\xBD\"");
  EXPECT_EQ(JsonQuoted("\xED\xA0\x80"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");  // A surrogate.
}

}  // namespace
}  // namespace quicksilver
