#include "tests/coordinator/service_fixture.h"

namespace quicksilver {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

using LimitsTest = ServiceTest;

TEST_F(LimitsTest, TheWorkerIsToldToStopJustBeforeTheDeadline) {
  StartBoth();
  GenerateRequest request = Ask();
  request.timeout_seconds = 60;
  const auto sink = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> call = service_->Start(std::move(request), sink);
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  EXPECT_LT(submit->deadline_micros(), 60'000'000u);
  EXPECT_GT(submit->deadline_micros(), 50'000'000u);
  EXPECT_EQ(submit->target_micros(), 0u);
  // The client's words: without a latency target a part of an answer is none.
  group_->Send(WholeAnswer(*submit, Ids("half"), v1::SequenceEnd::REASON_DEADLINE));
  ASSERT_TRUE(sink->WaitUntilOver());
  ASSERT_THAT(sink->errors_, SizeIs(1));
  EXPECT_EQ(sink->errors_[0].code, "deadline_exceeded");
  EXPECT_EQ(sink->errors_[0].http_status, 504);
  EXPECT_THAT(sink->started_, IsEmpty()) << "it is a status, not the end of a stream";
}

TEST_F(LimitsTest, ALatencyTargetGivesTheBestAnswerSoFarAndSaysSo) {
  StartBoth();
  GenerateRequest request = Ask();
  request.timeout_seconds = 60;
  request.latency_target_seconds = 20;
  const auto sink = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> call = service_->Start(std::move(request), sink);
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  EXPECT_LT(submit->target_micros(), 20'000'000u);
  EXPECT_GT(submit->target_micros(), 15'000'000u);
  EXPECT_EQ(submit->deadline_micros(), submit->target_micros());
  v1::SequenceUpdate last = WholeAnswer(*submit, Ids("half"), v1::SequenceEnd::REASON_DEADLINE);
  last.mutable_end()->set_paced_steps(3);
  last.mutable_end()->set_cached_tokens(2);
  group_->Send(last);
  ASSERT_TRUE(sink->WaitUntilOver());
  ASSERT_THAT(sink->errors_, IsEmpty());
  EXPECT_EQ(sink->texts_[0], "half");
  EXPECT_EQ(sink->finished_[0].reason, FinishReason::kLength);
  EXPECT_TRUE(sink->finished_[0].deadline_reached);
  EXPECT_EQ(sink->finished_[0].paced_steps, 3u);
  EXPECT_EQ(sink->finished_[0].cached_tokens, 2u);
  EXPECT_EQ(metrics_->tenant("default").cached_prompt_tokens->Value(), 2);
}

TEST_F(LimitsTest, ATenantOverItsLimitIsToldSoAndOthersAreServed) {
  options_.dispatcher.tenants.tenants["acme"].requests_per_minute = 1;
  StartBoth();
  group_->OnSubmit([&](const v1::Submit& submit) { group_->Send(WholeAnswer(submit, Ids("x"))); });
  GenerateRequest request = Ask();
  request.tenant = "acme";
  const auto first = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> call = service_->Start(request, first);
  ASSERT_TRUE(first->WaitUntilOver());
  ASSERT_THAT(first->started_, SizeIs(1));
  ASSERT_TRUE(first->started_[0].rates.requests.has_value());
  EXPECT_EQ(first->started_[0].rates.requests->limit, 1u);
  EXPECT_EQ(first->started_[0].rates.requests->remaining, 0u);

  const auto second = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> refused = service_->Start(request, second);
  ASSERT_TRUE(second->WaitUntilOver());
  ASSERT_THAT(second->errors_, SizeIs(1));
  EXPECT_EQ(second->errors_[0].code, "rate_limit_exceeded");
  EXPECT_EQ(second->errors_[0].http_status, 429);
  EXPECT_GT(second->errors_[0].retry_after_seconds, 0);
  ASSERT_TRUE(second->errors_[0].rates.requests.has_value());
  EXPECT_GT(second->errors_[0].rates.requests->reset, absl::ZeroDuration());
  EXPECT_EQ(metrics_->rejections.rate_limit->Value(), 1);

  const auto other = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> served = service_->Start(Ask(), other);
  ASSERT_TRUE(other->WaitUntilOver());
  EXPECT_EQ(other->texts_[0], "x");
  EXPECT_FALSE(other->started_[0].rates.requests.has_value());
}

TEST_F(LimitsTest, TheWorkerHearsTheClassThatTheTenantMayUse) {
  options_.dispatcher.tenants.tenants["acme"].priority_max = Priority::kDefault;
  StartBoth();
  for (const auto& [tenant, served] : {std::pair{"acme", v1::PRIORITY_DEFAULT}, {"other", v1::PRIORITY_INTERACTIVE}}) {
    GenerateRequest request = Ask();
    request.tenant = tenant;
    request.priority = Priority::kInteractive;
    const std::unique_ptr<Call> call = service_->Start(std::move(request), std::make_shared<RecordingSink>());
    const std::optional<v1::Submit> submit = group_->NextSubmit();
    ASSERT_TRUE(submit.has_value());
    EXPECT_EQ(submit->priority(), served) << tenant;
  }
}

}  // namespace
}  // namespace quicksilver
