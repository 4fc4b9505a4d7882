#include "coordinator/service/live_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/recording_sink.h"
#include "tests/coordinator/scripted_group.h"

namespace quicksilver {
namespace {

using Outcome = LiveRequest::Outcome;

// What races would need luck to show: the words of two groups about one choice, in every order.
class LiveRequestTest : public testing::Test {
 protected:
  void SetUp() override { Make({}); }

  void Make(GenerateRequest request) {
    request.input = std::string("def f");
    const ModelFacts model{.name = "demo",
                           .max_model_len = 100,
                           .vocabulary = static_cast<uint32_t>(text_->size()),
                           .mask_id = text_->FindSpecial("<|MASK|>"),
                           .block_length = 8,
                           .stop_ids = {text_->FindSpecial("<|im_end|>")}};
    PreparedRequest prepared = std::get<PreparedRequest>(Prepare(request, *text_, model, {}, 1));
    live_ = std::make_unique<LiveRequest>(RequestId{1}, request, sink_, absl::ZeroDuration(), 0);
    live_->Prepared(std::move(prepared), model, *text_, absl::Milliseconds(20), absl::Seconds(60));
  }

  std::unique_ptr<v1::CoordinatorMessage> Place(uint64_t sequence, SubmitCause cause, absl::Duration now) {
    return live_->OnPlaced(
        {.sequence = SequenceId{sequence}, .fingerprint = fingerprint_, .cause = cause, .left_at = left_at_}, now);
  }
  v1::SequenceUpdate Whole(uint64_t sequence) {
    v1::Submit submit;
    submit.mutable_prompt_ids()->Resize(static_cast<int>(live_->prompt_tokens()), 0);
    submit.set_sequence_id(sequence);
    return WholeAnswer(submit, *text_->Encode("x", 10));
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::unique_ptr<LiveRequest> live_;
  absl::Duration left_at_;
  std::string fingerprint_ = "f";
};

TEST_F(LiveRequestTest, AnOldSequencesLateEndDoesNotEndTheChoice) {
  Place(1, SubmitCause::kNew, absl::ZeroDuration());
  Place(2, SubmitCause::kLost, absl::Seconds(1));
  EXPECT_EQ(live_->Apply(0, Whole(1), 1, absl::Seconds(2)).outcome, Outcome::kNothing);
  EXPECT_EQ(live_->Apply(0, Whole(2), 1, absl::Seconds(3)).outcome, Outcome::kEndedByWorker);
}

TEST_F(LiveRequestTest, AChoiceThatEndedWhileItsGroupWasGivenUpIsNotSentAgain) {
  Place(1, SubmitCause::kNew, absl::ZeroDuration());
  EXPECT_EQ(live_->Apply(0, Whole(1), 1, absl::Seconds(1)).outcome, Outcome::kEndedByWorker);
  EXPECT_EQ(Place(2, SubmitCause::kLost, absl::Seconds(2)), nullptr);
  EXPECT_EQ(live_->Apply(0, Whole(2), 1, absl::Seconds(3)).outcome, Outcome::kNothing);
}

TEST_F(LiveRequestTest, WhatHasBegunGoesToNoOtherFingerprint) {
  Place(1, SubmitCause::kNew, absl::ZeroDuration());
  fingerprint_ = "g";
  EXPECT_NE(Place(2, SubmitCause::kLost, absl::Seconds(1)), nullptr) << "nothing was seen yet";
  v1::SequenceUpdate first;
  first.set_sequence_id(2);
  first.set_step(1);
  EXPECT_EQ(live_->Apply(0, first, 1, absl::Seconds(2)).outcome, Outcome::kGoesOn);
  fingerprint_ = "f";
  EXPECT_EQ(Place(3, SubmitCause::kLost, absl::Seconds(3)), nullptr);
  EXPECT_FALSE(live_->HasEnded(0));
  fingerprint_ = "g";
  EXPECT_NE(Place(4, SubmitCause::kLost, absl::Seconds(4)), nullptr);
}

TEST_F(LiveRequestTest, TheTimeToGoOnCountsFromTheFirstOfSeveralLosses) {
  Place(1, SubmitCause::kNew, absl::ZeroDuration());
  left_at_ = absl::Seconds(1);
  Place(2, SubmitCause::kLost, absl::Seconds(2));
  left_at_ = absl::Seconds(3);
  Place(3, SubmitCause::kLost, absl::Seconds(4));
  const LiveRequest::Applied applied = live_->Apply(0, Whole(3), 1, absl::Seconds(6));
  EXPECT_EQ(applied.resumed, absl::Seconds(5));
}

TEST_F(LiveRequestTest, TimesThatHavePassedAreTheShortestNotNone) {
  const std::unique_ptr<v1::CoordinatorMessage> late = Place(1, SubmitCause::kNew, absl::Seconds(70));
  EXPECT_EQ(late->submit().deadline_micros(), 1u);
}

TEST_F(LiveRequestTest, TheBestSoFarIsAnAnswerOnlyWhenItWasTheTargetThatPassed) {
  const auto outcome = [&](double target_seconds) {
    GenerateRequest request;
    request.latency_target_seconds = target_seconds;
    Make(request);
    Place(1, SubmitCause::kNew, absl::ZeroDuration());
    v1::SequenceUpdate update = Whole(1);
    update.mutable_end()->set_reason(v1::SequenceEnd::REASON_DEADLINE);
    return live_->Apply(0, update, 1, absl::Seconds(1)).outcome;
  };
  EXPECT_EQ(outcome(10), Outcome::kEndedByWorker);
  EXPECT_EQ(outcome(100), Outcome::kFailed) << "the deadline is at 60 s";
}

TEST_F(LiveRequestTest, WhatRefusalsMean) {
  const auto outcome = [&](v1::SequenceEnd::Reason reason, const std::string& code) {
    Place(1, SubmitCause::kNew, absl::ZeroDuration());
    v1::SequenceUpdate update;
    update.set_sequence_id(1);
    update.mutable_end()->set_reason(reason);
    update.mutable_end()->set_error_code(code);
    return live_->Apply(0, update, 1, absl::Seconds(1));
  };
  EXPECT_EQ(outcome(v1::SequenceEnd::REASON_CANCELLED, "").outcome, Outcome::kReturned);
  EXPECT_EQ(outcome(v1::SequenceEnd::REASON_ERROR, "server_is_overloaded").outcome, Outcome::kReturned);
  EXPECT_EQ(outcome(v1::SequenceEnd::REASON_ERROR, "shutting_down").outcome, Outcome::kReturned);
  EXPECT_EQ(outcome(v1::SequenceEnd::REASON_ERROR, "numerical_error").error.code, "numerical_error");
  EXPECT_EQ(outcome(v1::SequenceEnd::REASON_ERROR, "invalid_value").error.http_status, 400);
  EXPECT_EQ(outcome(v1::SequenceEnd::REASON_DEADLINE, "").error.code, "deadline_exceeded");
}

TEST_F(LiveRequestTest, ARefusalNamesItsFieldAsTheClientKnowsIt) {
  const auto refusal = [&](const std::string& message) {
    Place(1, SubmitCause::kNew, absl::ZeroDuration());
    v1::SequenceUpdate update;
    update.set_sequence_id(1);
    update.mutable_end()->set_reason(v1::SequenceEnd::REASON_ERROR);
    update.mutable_end()->set_error_code("invalid_value");
    update.mutable_end()->set_error_message(message);
    const ApiError error = live_->Apply(0, update, 1, absl::Seconds(1)).error;
    EXPECT_EQ(error.http_status, 400);
    return error.param + " | " + error.message;
  };
  EXPECT_EQ(refusal("decoding.steps (9) must be in [1, 8]"), "decoding.steps | decoding.steps (9) must be in [1, 8]");
  EXPECT_EQ(refusal("fixed_ids[3] (7) must be another"),
            "infill.fixed_ids[3] | infill.fixed_ids[3] (7) must be another");
  EXPECT_EQ(refusal("prompt_ids (90) and max_tokens (20) must fit"),
            "prompt | prompt_ids (90) and max_tokens (20) must fit");
  EXPECT_EQ(refusal("decoding.factor must be unset"), "decoding.factor | decoding.factor must be unset");
  EXPECT_EQ(refusal("Something (else) is wrong"), " | Something (else) is wrong");
}

}  // namespace
}  // namespace quicksilver
