#include "tools/bench_serve/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

TEST(AnswerReaderTest, ReadsAStreamedChatAnswerWithUsageAndOurExtension) {
  RequestRecord record;
  AnswerReader answer(record, /*keep_text=*/true);
  answer.OnEvent(
      R"({"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null})", 0.1);
  answer.OnEvent(R"({"choices":[{"index":0,"delta":{"content":"abc"}}],"quicksilver":{"step":3,"block":2}})", 0.2);
  answer.OnEvent(R"({"choices":[{"index":0,"delta":{"content":"de"}}],"quicksilver":{"step":5,"block":3}})", 0.3);
  answer.OnEvent(R"({"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"quicksilver":{"forwards":5}})", 0.4);
  answer.OnEvent(
      R"({"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}},)"
      R"("quicksilver":{"forwards":6,"resumed":1}})",
      0.4);
  answer.OnEvent("[DONE]", 0.5);
  answer.Finish(200, 0.6);
  EXPECT_EQ(record.outcome, Outcome::kOk);
  ASSERT_EQ(record.pieces.size(), 2u);
  EXPECT_EQ(record.TimeToFirstToken(), 0.2) << "the chunk that only opens the answer is no token";
  EXPECT_EQ(record.pieces[1].block, 3);
  EXPECT_EQ(record.text, "abcde");
  EXPECT_EQ(record.finish_reason, "stop");
  EXPECT_EQ(record.prompt_tokens, 9u);
  EXPECT_EQ(record.output_tokens, 4u);
  EXPECT_EQ(record.cached_tokens, 8u);
  EXPECT_EQ(record.forwards, 6u);
  EXPECT_EQ(record.resumed, 1u);
  EXPECT_EQ(record.end, 0.6);
}

TEST(AnswerReaderTest, ReadsTheAnswerOfAServerThatCountsNothing) {
  RequestRecord record;
  record.prompt_tokens = 12;
  AnswerReader answer(record, false);
  answer.OnEvent(R"({"choices":[{"text":"12345"}]})", 0.1);
  answer.OnEvent("[DONE]", 0.2);
  answer.Finish(200, 0.2);
  EXPECT_EQ(record.outcome, Outcome::kOk);
  EXPECT_EQ(record.prompt_tokens, 12u);
  EXPECT_EQ(record.output_tokens, 2u) << "five bytes at four a token";
  EXPECT_EQ(record.pieces[0].block, -1);
  EXPECT_TRUE(record.text.empty());
}

TEST(AnswerReaderTest, ReadsAnAnswerThatIsNotStreamed) {
  RequestRecord record;
  AnswerReader answer(record, true);
  answer.OnBody(
      200, R"({"choices":[{"message":{"content":"whole"},"finish_reason":"length"}],"usage":{"completion_tokens":1}})",
      0.3);
  answer.Finish(200, 0.3);
  EXPECT_EQ(record.outcome, Outcome::kOk);
  EXPECT_EQ(record.text, "whole");
}

TEST(AnswerReaderTest, ARequestThatIsTurnedAwayIsRejectedAndNotFailed) {
  for (const int status : {429, 503}) {
    RequestRecord record;
    AnswerReader answer(record, false);
    answer.OnBody(status, R"({"error":{"message":"too many"}})", 0.01);
    answer.Finish(status, 0.01);
    EXPECT_EQ(record.outcome, Outcome::kRejected);
    EXPECT_EQ(record.error, "too many");
  }
}

TEST(AnswerReaderTest, AnErrorWithinTheStreamFails) {
  RequestRecord record;
  AnswerReader answer(record, false);
  answer.OnEvent(R"({"choices":[{"delta":{"content":"a"}}]})", 0.1);
  answer.OnEvent(R"({"error":{"message":"worker lost","code":"worker_lost"}})", 0.2);
  answer.OnEvent("[DONE]", 0.2);
  answer.Finish(200, 0.2);
  EXPECT_EQ(record.outcome, Outcome::kFailed);
  EXPECT_EQ(record.error, "worker lost");
}

TEST(AnswerReaderTest, AStreamThatStopsInTheMiddleFails) {
  RequestRecord record;
  AnswerReader answer(record, false);
  answer.OnEvent(R"({"choices":[{"delta":{"content":"a"},"finish_reason":null}]})", 0.1);
  answer.Finish(200, 0.2);
  EXPECT_EQ(record.outcome, Outcome::kFailed);
  EXPECT_THAT(record.error, HasSubstr("finish_reason"));
}

TEST(AnswerReaderTest, AnErrorOfAnyShapeIsToldInBoundedLength) {
  RequestRecord record;
  AnswerReader answer(record, false);
  answer.OnBody(500, std::string(10'000, 'x'), 0.1);
  answer.Finish(500, 0.1);
  EXPECT_EQ(record.outcome, Outcome::kFailed);
  EXPECT_EQ(record.error.size(), AnswerReader::kErrorBytesMax);
}

}  // namespace
}  // namespace quicksilver
