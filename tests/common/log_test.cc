#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(JsonQuotedTest, EscapesControlsAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(JsonQuoted("a\n\x01\\\""), "\"a\\u000a\\u0001\\\\\\\"\"");
  EXPECT_EQ(JsonQuoted("سلام 😀"), "\"سلام 😀\"");
  EXPECT_EQ(JsonQuoted("x\xC3"), "\"x\xEF\xBF\xBD\"");
  EXPECT_EQ(JsonQuoted("\xED\xA0\x80"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");  // A surrogate.
}

}  // namespace
}  // namespace quicksilver
