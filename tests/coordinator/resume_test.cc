#include "tests/coordinator/service_fixture.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class ResumeTest : public ServiceTest {
 protected:
  // A request that has run on the first group up to "one "; its record is then {step 2, those tokens}.
  struct Begun {
    std::shared_ptr<RecordingSink> sink;
    std::unique_ptr<Call> call;
    v1::Submit submit;
    uint32_t begin = 0;  // Of the answer.
    std::vector<int32_t> ids;
  };
  Begun Begin(GenerateRequest request = Ask()) {
    Begun begun{.sink = std::make_shared<RecordingSink>(), .ids = Ids("one ")};
    request.seed = 11;
    begun.call = service_->Start(std::move(request), begun.sink);
    begun.submit = group_->NextSubmit().value();
    begun.begin = static_cast<uint32_t>(begun.submit.prompt_ids_size());
    group_->Send(FinalTokens(begun.submit, begun.ids, begun.begin, 2));
    EXPECT_TRUE(begun.sink->WaitFor([](const RecordingSink& s) { return s.texts_[0] == "one "; }));
    return begun;
  }

  // `submit` goes on where `begun` was left, and only there.
  static void ExpectContinues(const v1::Submit& submit, const Begun& begun) {
    EXPECT_NE(submit.sequence_id(), begun.submit.sequence_id());
    EXPECT_THAT(submit.prompt_ids(), ElementsAreArray(begun.submit.prompt_ids()));
    EXPECT_EQ(submit.sampling().seed(), begun.submit.sampling().seed());
    EXPECT_EQ(submit.cache_salt(), begun.submit.cache_salt());
    EXPECT_EQ(submit.max_tokens(), begun.submit.max_tokens());
    EXPECT_EQ(submit.checkpoint().step(), 2u);
    EXPECT_EQ(submit.checkpoint().final_before(), begun.begin + begun.ids.size());
    EXPECT_THAT(submit.checkpoint().tokens(), ElementsAreArray(begun.ids));
  }

  // Ends the answer as "one two" on `group`.
  void FinishOn(ScriptedGroup& group, const v1::Submit& submit, const Begun& begun) {
    const std::vector<int32_t> rest = Ids("two");
    const auto from = static_cast<uint32_t>(begun.begin + begun.ids.size());
    v1::SequenceUpdate last = Ending(FinalTokens(submit, rest, from, 4), begun.ids.size() + rest.size());
    last.mutable_end()->set_cached_tokens(3);
    last.mutable_end()->set_preemptions(2);
    group.Send(last);
    ASSERT_TRUE(begun.sink->WaitUntilOver());
    ASSERT_THAT(begun.sink->errors_, IsEmpty());
    EXPECT_THAT(begun.sink->events_, testing::ElementsAre("started", "delta one ", "delta two", "finished"));
    EXPECT_EQ(begun.sink->finished_[0].completion_tokens, begun.ids.size() + rest.size());
    EXPECT_EQ(begun.sink->finished_[0].resumes, 1u);
    EXPECT_EQ(begun.sink->finished_[0].cached_tokens, 0u) << "what a resume finds cached is not the client's";
    EXPECT_EQ(begun.sink->finished_[0].preemptions, 0u) << "those of the lost group are not known";
    EXPECT_EQ(begun.sink->after_the_end_, 0);
  }
};

TEST_F(ResumeTest, AnAnswerWhoseGroupIsLostGoesOnOnAnotherWithoutARepeatedWord) {
  StartWithASecondGroup();
  const Begun begun = Begin();
  second_->SetReady(true);
  ASSERT_TRUE(ComesToSay(Up(second_->address(), true)));
  group_.reset();
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  ExpectContinues(*again, begun);
  FinishOn(*second_, *again, begun);
  EXPECT_EQ(metrics_->requests_resumed.lost->Value(), 1);
  EXPECT_TRUE(ComesToSay("quicksilver_resume_duration_seconds_count{model_name=\"demo\"} 1\n"));
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(5)));
  EXPECT_EQ(metrics_->requests_running.Value(), 0);
}

TEST_F(ResumeTest, BeforeTheFirstUpdateItBeginsAnew) {
  StartWithASecondGroup();
  const auto sink = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> call = service_->Start(Ask(), sink);
  ASSERT_TRUE(group_->NextSubmit().has_value());
  second_->SetReady(true);
  group_.reset();
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  EXPECT_FALSE(again->has_checkpoint());
  second_->Send(WholeAnswer(*again, Ids("whole")));
  ASSERT_TRUE(sink->WaitUntilOver());
  EXPECT_EQ(sink->texts_[0], "whole");
  EXPECT_THAT(sink->started_, SizeIs(1));
}

TEST_F(ResumeTest, ARequestWaitsForItsOnlyGroupToFormAgain) {
  StartBoth();
  const Begun begun = Begin();
  group_.reset();
  ASSERT_TRUE(BecomesReady(false));
  EXPECT_EQ(ErrorOf(Ask()), "no_ready_worker") << "new ones do not wait";
  EXPECT_FALSE(begun.sink->over_);
  StartGroup();
  const std::optional<v1::Submit> again = group_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  ExpectContinues(*again, begun);
  FinishOn(*group_, *again, begun);
}

TEST_F(ResumeTest, WithoutAGroupForLongItEndsWithWorkerLost) {
  options_.dispatcher.resume_wait = absl::Milliseconds(300);
  StartBoth();
  const Begun begun = Begin();
  group_.reset();
  ASSERT_TRUE(begun.sink->WaitUntilOver());
  EXPECT_EQ(begun.sink->errors_[0].code, "worker_lost");
  EXPECT_EQ(begun.sink->errors_[0].http_status, 500);
  // Its pages are gone with it.
  EXPECT_TRUE(ComesToSay(
      "quicksilver_kv_cache_usage_ratio{model_name=\"demo\",pool=\"127.0.0.1:" + std::to_string(port_) + "\"} 0\n"));
}

TEST_F(ResumeTest, ASilentGroupIsLostAndWhatItSaysLaterIsDropped) {
  options_.dispatcher.lease = absl::Milliseconds(400);
  StartWithASecondGroup();
  const Begun begun = Begin();
  second_->SetReady(true);
  group_->SetSilent(true);
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  ExpectContinues(*again, begun);

  group_->SetSilent(false);
  ASSERT_TRUE(ComesToSay(Up(group_->address(), true)));
  group_->Send(WholeAnswer(begun.submit, Ids("late")));
  // Behind it on the same stream: when this is known, so was that.
  group_->SetReady(false);
  ASSERT_TRUE(ComesToSay(Up(group_->address(), false)));
  second_->Send(WholeAnswer(*again, Ids("an older incarnation's")), /*epoch=*/2);
  FinishOn(*second_, *again, begun);
}

TEST_F(ResumeTest, ChoicesGoOnApart) {
  StartWithASecondGroup();
  GenerateRequest request = Ask();
  request.choices = 2;
  const auto sink = std::make_shared<RecordingSink>(2);
  const std::unique_ptr<Call> call = service_->Start(std::move(request), sink);
  std::vector<v1::Submit> submits(2);
  for (int i = 0; i < 2; ++i) {
    const v1::Submit submit = group_->NextSubmit().value();
    submits.at(submit.choice()) = submit;
  }
  const auto begin = static_cast<uint32_t>(submits[0].prompt_ids_size());
  group_->Send(WholeAnswer(submits[1], Ids("b")));
  group_->Send(FinalTokens(submits[0], Ids("a"), begin, 3));
  ASSERT_TRUE(sink->WaitFor([](const RecordingSink& s) { return s.texts_[0] == "a" && s.finished_.size() == 1; }));
  second_->SetReady(true);
  group_.reset();
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->choice(), 0u);
  EXPECT_EQ(again->checkpoint().step(), 3u);
  second_->Send(Ending(FinalTokens(*again, Ids("A"), again->checkpoint().final_before(), 4), 2));
  ASSERT_TRUE(sink->WaitUntilOver());
  EXPECT_THAT(sink->texts_, testing::ElementsAre("aA", "b"));
  EXPECT_EQ(sink->finished_[0].resumes, 0u);
  EXPECT_EQ(sink->finished_[1].resumes, 1u);
  EXPECT_TRUE(second_->NothingCame()) << "the choice that had ended did not go on";
}

TEST_F(ResumeTest, AGroupThatDisagreesWithWhatWasSaidFailsTheRequestLoudly) {
  StartWithASecondGroup();
  const Begun begun = Begin();
  second_->SetReady(true);
  group_.reset();
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  second_->Send(FinalTokens(*again, Ids("two"), begun.begin, 3));
  ASSERT_TRUE(begun.sink->WaitUntilOver());
  EXPECT_EQ(begun.sink->errors_.at(0).code, "resume_divergence");
  EXPECT_EQ(begun.sink->errors_.at(0).http_status, 500);
  EXPECT_EQ(begun.sink->texts_[0], "one ");
  EXPECT_EQ(metrics_->resume_divergences.Value(), 1);
  EXPECT_EQ(second_->NextCancel(), again->sequence_id());
}

TEST_F(ResumeTest, ADrainingGroupsCanvasesMoveAndItsLateWordsAreDropped) {
  StartWithASecondGroup();
  const Begun begun = Begin();
  second_->SetReady(true);
  ASSERT_TRUE(ComesToSay(Up(second_->address(), true)));
  group_->SetDraining(true);
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  ExpectContinues(*again, begun);
  EXPECT_EQ(group_->NextCancel(), begun.submit.sequence_id());
  group_->Send(WholeAnswer(begun.submit, Ids("late")));
  group_->SetReady(false);
  ASSERT_TRUE(ComesToSay(Up(group_->address(), false)));
  FinishOn(*second_, *again, begun);
  EXPECT_EQ(metrics_->requests_resumed.moved->Value(), 1);
  EXPECT_EQ(metrics_->requests_resumed.lost->Value(), 0);
}

TEST_F(ResumeTest, WhatAGroupDoesNotWantGoesElsewhere) {
  StartWithASecondGroup();
  const auto sink = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> call = service_->Start(Ask(), sink);
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  second_->SetReady(true);
  ASSERT_TRUE(ComesToSay(Up(second_->address(), true)));
  group_->SetReady(false);
  ASSERT_TRUE(ComesToSay(Up(group_->address(), false)));
  v1::SequenceUpdate refusal;
  refusal.set_sequence_id(submit->sequence_id());
  refusal.mutable_end()->set_reason(v1::SequenceEnd::REASON_ERROR);
  refusal.mutable_end()->set_error_code("shutting_down");
  group_->Send(refusal);
  const std::optional<v1::Submit> again = second_->NextSubmit();
  ASSERT_TRUE(again.has_value());
  second_->Send(WholeAnswer(*again, Ids("whole")));
  ASSERT_TRUE(sink->WaitUntilOver());
  EXPECT_EQ(sink->texts_[0], "whole");
  EXPECT_EQ(sink->finished_[0].resumes, 0u) << "it had not run there";
  EXPECT_EQ(metrics_->requests_resumed.lost->Value(), 0);
}

TEST_F(ResumeTest, ACancelledRequestDoesNotGoOn) {
  StartWithASecondGroup();
  Begun begun = Begin();
  second_->SetReady(true);
  ASSERT_TRUE(ComesToSay(Up(second_->address(), true)));
  begun.call->Cancel();
  EXPECT_EQ(group_->NextCancel(), begun.submit.sequence_id());
  group_.reset();
  ASSERT_TRUE(ComesToSay(Up("127.0.0.1:" + std::to_string(port_), false)));
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(5)));
  EXPECT_TRUE(second_->NothingCame());
  EXPECT_EQ(metrics_->requests_resumed.lost->Value(), 0);
}

}  // namespace
}  // namespace quicksilver
