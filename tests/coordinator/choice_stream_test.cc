#include "coordinator/service/choice_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/scripted_group.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr uint32_t kPrompt = 10;
constexpr uint64_t kEpoch = 3;

MATCHER_P4(IsSpan, op, first, tokens, text, "") {
  return arg.op == op && arg.first == static_cast<uint32_t>(first) && arg.tokens == static_cast<uint32_t>(tokens) &&
         arg.text == text;
}

class ChoiceStreamTest : public testing::Test {
 protected:
  ChoiceStreamTest() {
    settings_.prompt_tokens = kPrompt;
    settings_.max_tokens = 40;
    settings_.block_length = 8;
    settings_.positions_max = kPrompt + 40 + 8;
    settings_.stop_ids = {text_->FindSpecial("<|im_end|>")};
  }

  std::vector<int32_t> Ids(const std::string& text) { return *text_->Encode(text, 1000); }
  std::string TextOf(const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) text += text_->TokenBytes(id);
    return text;
  }
  int32_t EndId() { return settings_.stop_ids[0]; }
  v1::Submit Prompt() {
    v1::Submit submit;
    for (uint32_t i = 0; i < kPrompt; ++i) submit.add_prompt_ids(1);
    return submit;
  }

  std::vector<ChoiceEvent> Apply(ChoiceStream& stream, const v1::SequenceUpdate& update) {
    std::vector<ChoiceEvent> events;
    now_ += absl::Seconds(1);
    EXPECT_TRUE(stream.Apply(update, kEpoch, now_, events).ok());
    for (const ChoiceEvent& event : events) {
      if (const auto* delta = std::get_if<DeltaEvent>(&event)) heard_ += delta->text;
      if (const auto* finished = std::get_if<FinishedEvent>(&event)) finished_ = *finished;
    }
    return events;
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  ChoiceSettings settings_;
  absl::Duration now_;
  std::string heard_;
  std::optional<FinishedEvent> finished_;
};

TEST_F(ChoiceStreamTest, TextIsThatOfTheFinalPositionsAlone) {
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  ASSERT_GT(ids.size(), 3u);
  v1::SequenceUpdate update = FinalTokens(Prompt(), ids, kPrompt, 1);
  update.set_final_before(kPrompt + 2);
  Apply(stream, update);
  EXPECT_EQ(heard_, std::string(text_->TokenBytes(ids[0])) + std::string(text_->TokenBytes(ids[1])));

  v1::SequenceUpdate rest;
  rest.set_final_before(kPrompt + static_cast<uint32_t>(ids.size()));
  Apply(stream, rest);
  EXPECT_EQ(heard_, "def add(a, b):");
}

TEST_F(ChoiceStreamTest, AStopTokenEndsTheTextAndIsNotCounted) {
  ChoiceStream stream(*text_, settings_);
  std::vector<int32_t> ids = Ids("ok");
  const size_t tokens = ids.size();
  ids.push_back(EndId());
  ids.push_back(Ids("junk")[0]);
  Apply(stream, WholeAnswer(Prompt(), ids));
  EXPECT_EQ(heard_, "ok");
  ASSERT_TRUE(finished_.has_value());
  EXPECT_EQ(finished_->completion_tokens, tokens);
  EXPECT_EQ(finished_->reason, FinishReason::kStop);
  EXPECT_EQ(finished_->forwards, 5u);
}

TEST_F(ChoiceStreamTest, TheTailOfTheLastBlockBeyondMaxTokensIsDropped) {
  settings_.max_tokens = 2;
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  ASSERT_GT(ids.size(), 3u);
  v1::SequenceUpdate update = WholeAnswer(Prompt(), ids, v1::SequenceEnd::REASON_LENGTH);
  Apply(stream, update);
  EXPECT_EQ(heard_, std::string(text_->TokenBytes(ids[0])) + std::string(text_->TokenBytes(ids[1])));
  EXPECT_EQ(finished_->completion_tokens, 2u);
  EXPECT_EQ(finished_->reason, FinishReason::kLength);
}

TEST_F(ChoiceStreamTest, AStopStringOverTwoBlocksIsNeverSent) {
  settings_.stops = {"END"};
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> head = Ids("abc E"), tail = Ids("ND more");
  Apply(stream, FinalTokens(Prompt(), head, kPrompt, 3));
  EXPECT_EQ(heard_, "abc ");
  Apply(stream, FinalTokens(Prompt(), tail, kPrompt + static_cast<uint32_t>(head.size()), 4));
  EXPECT_EQ(heard_, "abc ");
  ASSERT_TRUE(finished_.has_value());
  EXPECT_EQ(finished_->reason, FinishReason::kStop);
  EXPECT_EQ(finished_->forwards, 4u);
  EXPECT_EQ(finished_->completion_tokens, Ids("abc ").size());
  EXPECT_TRUE(stream.stopped_here());
  EXPECT_THAT(Apply(stream, WholeAnswer(Prompt(), head)), SizeIs(0)) << "nothing comes after the end";
}

TEST_F(ChoiceStreamTest, TextThatMayBecomeAStopStringIsProvisional) {
  settings_.stops = {"END"};
  settings_.canvases = true;
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("abc E");
  const std::vector<ChoiceEvent> events = Apply(stream, FinalTokens(Prompt(), ids, kPrompt, 3));
  const FrameEvent frame = std::get<FrameEvent>(events.back());
  ASSERT_THAT(frame.spans, SizeIs(2));
  EXPECT_EQ(frame.spans[0].op, SpanOp::kFinal);
  EXPECT_EQ(frame.spans[0].text, "abc ");
  EXPECT_EQ(frame.spans[1].op, SpanOp::kReplace);
  EXPECT_EQ(frame.spans[1].text, "E");
  EXPECT_EQ(frame.spans[1].first, frame.committed);
  EXPECT_LT(frame.committed, ids.size());
}

TEST_F(ChoiceStreamTest, TextThatOnlyBeganLikeAStopStringComesAtTheEnd) {
  settings_.stops = {"END"};
  ChoiceStream stream(*text_, settings_);
  Apply(stream, WholeAnswer(Prompt(), Ids("abc EN")));
  EXPECT_EQ(heard_, "abc EN");
  EXPECT_FALSE(stream.stopped_here());
}

TEST_F(ChoiceStreamTest, CharactersAreNeverSplit) {
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("مرحبا 🚀");
  for (uint32_t i = 0; i < ids.size(); ++i) {
    for (const ChoiceEvent& event : Apply(stream, FinalTokens(Prompt(), {ids[i]}, kPrompt + i, i))) {
      if (const auto* delta = std::get_if<DeltaEvent>(&event)) {
        EXPECT_EQ(delta->text.find("\xEF\xBF\xBD"), std::string::npos) << delta->text;
      }
    }
  }
  EXPECT_EQ(heard_, "مرحبا 🚀");
}

TEST_F(ChoiceStreamTest, FramesReplaceFirstThenCommitThenFinalise) {
  settings_.canvases = true;
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  // Block 1 is positions 8 to 15: the answer begins at 10.
  v1::SequenceUpdate update = FinalTokens(Prompt(), {ids[0]}, kPrompt, 1);
  v1::Commit& provisional = *update.add_commits();
  provisional.set_position(kPrompt + 2);
  provisional.set_token(ids[2]);
  update.set_block(1);
  std::vector<ChoiceEvent> events = Apply(stream, update);
  ASSERT_THAT(events, SizeIs(2));
  FrameEvent frame = std::get<FrameEvent>(events[1]);
  EXPECT_EQ(frame.epoch, kEpoch);
  EXPECT_EQ(frame.committed, 1u);
  EXPECT_EQ(frame.extent, 6u);  // Up to position 15.
  ASSERT_THAT(frame.spans, SizeIs(2));
  EXPECT_THAT(frame.spans[0], IsSpan(SpanOp::kFinal, 0, 1, text_->TokenBytes(ids[0])));
  EXPECT_THAT(frame.spans[1], IsSpan(SpanOp::kReplace, 2, 1, text_->TokenBytes(ids[2])));

  v1::SequenceUpdate open = FinalTokens(Prompt(), {ids[3]}, kPrompt + 3, 2);
  open.set_final_before(kPrompt + 1);
  events = Apply(stream, open);
  frame = std::get<FrameEvent>(events.at(0));
  ASSERT_THAT(frame.spans, SizeIs(1));
  EXPECT_THAT(frame.spans[0], IsSpan(SpanOp::kCommit, 2, 2, TextOf({ids[2], ids[3]})));

  events = Apply(stream, WholeAnswer(Prompt(), ids));
  ASSERT_THAT(events, SizeIs(3));
  frame = std::get<FrameEvent>(events[1]);
  EXPECT_EQ(frame.extent, frame.committed);
  ASSERT_THAT(frame.spans, SizeIs(1));
  EXPECT_EQ(frame.spans[0].op, SpanOp::kFinal);
}

TEST_F(ChoiceStreamTest, TheFirstFrameOfAnotherGroupReplaces) {
  settings_.canvases = true;
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  stream.OnPlaced(/*resumes=*/false, now_);
  const auto open = [&](uint32_t at) {
    v1::SequenceUpdate update = FinalTokens(Prompt(), {ids[at]}, kPrompt + at, at + 1);
    update.set_final_before(kPrompt);
    return update;
  };
  Apply(stream, open(1));
  EXPECT_EQ(std::get<FrameEvent>(Apply(stream, open(3)).at(0)).spans.at(0).op, SpanOp::kCommit);
  stream.OnPlaced(/*resumes=*/true, now_);
  const FrameEvent frame = std::get<FrameEvent>(Apply(stream, open(0)).at(0));
  ASSERT_THAT(frame.spans, SizeIs(2));
  EXPECT_THAT(frame.spans[0], IsSpan(SpanOp::kReplace, 0, 2, TextOf({ids[0], ids[1]})));
  EXPECT_THAT(frame.spans[1], IsSpan(SpanOp::kReplace, 3, 1, text_->TokenBytes(ids[3])));
  Apply(stream, WholeAnswer(Prompt(), ids));
  EXPECT_EQ(finished_->resumes, 1u);
}

TEST_F(ChoiceStreamTest, FramesComeNoFasterThanAllowedUnlessABlockCloses) {
  settings_.canvases = true;
  settings_.canvas_interval = absl::Seconds(10);
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  const auto open = [&](uint32_t at) {
    v1::SequenceUpdate update = FinalTokens(Prompt(), {ids[at]}, kPrompt + at, at + 1);
    update.set_final_before(kPrompt);
    return update;
  };
  EXPECT_THAT(Apply(stream, open(0)), SizeIs(1));
  EXPECT_THAT(Apply(stream, open(2)), SizeIs(0));
  const std::vector<ChoiceEvent> events = Apply(stream, FinalTokens(Prompt(), {ids[0]}, kPrompt, 3));
  ASSERT_THAT(events, SizeIs(2));
  const FrameEvent frame = std::get<FrameEvent>(events[1]);
  ASSERT_THAT(frame.spans, SizeIs(2)) << "what was held back comes with it";
  EXPECT_THAT(frame.spans[1], IsSpan(SpanOp::kCommit, 2, 1, text_->TokenBytes(ids[2])));
}

TEST_F(ChoiceStreamTest, ADeadlineEndsTheTextWhereItIsFinal) {
  ChoiceStream stream(*text_, settings_);
  v1::SequenceUpdate update = WholeAnswer(Prompt(), Ids("def add"), v1::SequenceEnd::REASON_DEADLINE);
  update.mutable_end()->set_cached_tokens(8);
  update.mutable_end()->set_paced_steps(2);
  Apply(stream, update);
  EXPECT_EQ(heard_, "def add");
  EXPECT_EQ(finished_->reason, FinishReason::kLength);
  EXPECT_TRUE(finished_->deadline_reached);
  EXPECT_EQ(finished_->cached_tokens, 8u);
  EXPECT_EQ(finished_->paced_steps, 2u);
}

TEST_F(ChoiceStreamTest, TheRecordIsTheStateAfterTheLastUpdate) {
  ChoiceStream stream(*text_, settings_);
  EXPECT_EQ(stream.Record().ShortDebugString(), "final_before: 10");
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  Apply(stream, FinalTokens(Prompt(), {ids[0], ids[1], ids[2], ids[3], ids[0], ids[1]}, kPrompt, 4));
  v1::SequenceUpdate open = FinalTokens(Prompt(), {ids[2]}, kPrompt + 8, 5);
  open.set_final_before(kPrompt + 6);
  open.set_block_step(1);
  Apply(stream, open);
  const v1::Checkpoint record = stream.Record();
  EXPECT_EQ(record.step(), 5u);
  EXPECT_EQ(record.block_step(), 1u);
  EXPECT_EQ(record.final_before(), kPrompt + 6);
  EXPECT_THAT(record.tokens(), ElementsAre(ids[0], ids[1], ids[2], ids[3], ids[0], ids[1], -1, -1, ids[2]));
}

TEST_F(ChoiceStreamTest, TheRecordHoldsTheTailOfTheLastBlockBehindTheAnswer) {
  settings_.max_tokens = 2;
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  v1::SequenceUpdate update = FinalTokens(Prompt(), {ids[3]}, kPrompt + 5, 1);
  update.set_final_before(kPrompt);
  Apply(stream, update);
  EXPECT_THAT(stream.Record().tokens(), ElementsAre(-1, -1, -1, -1, -1, ids[3]));
}

TEST_F(ChoiceStreamTest, AWorkerThatBreaksItsContractIsFound) {
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  std::vector<ChoiceEvent> events;
  ChoiceStream changed(*text_, settings_);
  Apply(changed, FinalTokens(Prompt(), {ids[0]}, kPrompt, 1));
  EXPECT_EQ(changed.Apply(FinalTokens(Prompt(), {ids[0] + 1}, kPrompt, 2), kEpoch, now_, events).code(),
            absl::StatusCode::kInternal);

  ChoiceStream hole(*text_, settings_);
  v1::SequenceUpdate update = FinalTokens(Prompt(), {ids[0]}, kPrompt, 1);
  update.set_final_before(kPrompt + 2);
  EXPECT_EQ(hole.Apply(update, kEpoch, now_, events).code(), absl::StatusCode::kInternal);

  ChoiceStream in_prompt(*text_, settings_);
  EXPECT_EQ(in_prompt.Apply(FinalTokens(Prompt(), {ids[0]}, kPrompt - 1, 1), kEpoch, now_, events).code(),
            absl::StatusCode::kInternal);

  ChoiceStream far_off(*text_, settings_);
  EXPECT_EQ(far_off.Apply(FinalTokens(Prompt(), {ids[0]}, kPrompt + 40 + 8, 1), kEpoch, now_, events).code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace quicksilver
