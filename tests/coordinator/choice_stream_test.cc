#include "coordinator/service/choice_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/scripted_group.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr uint32_t kPrompt = 10;

class ChoiceStreamTest : public testing::Test {
 protected:
  ChoiceStreamTest() {
    settings_.prompt_tokens = kPrompt;
    settings_.max_tokens = 40;
    settings_.block_length = 8;
    settings_.stop_ids = {text_->FindSpecial("<|im_end|>")};
  }

  std::vector<int32_t> Ids(const std::string& text) { return *text_->Encode(text, 1000); }
  int32_t EndId() { return settings_.stop_ids[0]; }
  v1::Submit Prompt() {
    v1::Submit submit;
    for (uint32_t i = 0; i < kPrompt; ++i) submit.add_prompt_ids(1);
    return submit;
  }

  std::vector<ChoiceEvent> Apply(ChoiceStream& stream, const v1::SequenceUpdate& update) {
    std::vector<ChoiceEvent> events;
    now_ += absl::Seconds(1);
    EXPECT_TRUE(stream.Apply(update, now_, events).ok());
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

TEST_F(ChoiceStreamTest, ACanvasShowsTextThatMayBecomeAStopStringAsProvisional) {
  settings_.stops = {"END"};
  settings_.canvases = true;
  ChoiceStream stream(*text_, settings_);
  const std::vector<ChoiceEvent> events = Apply(stream, FinalTokens(Prompt(), Ids("abc E"), kPrompt, 3));
  const CanvasEvent canvas = std::get<CanvasEvent>(events.back());
  ASSERT_GE(canvas.spans.size(), 2u);
  EXPECT_EQ(canvas.spans[0].state, SpanState::kFinal);
  EXPECT_EQ(canvas.spans[0].text, "abc ");
  EXPECT_EQ(canvas.spans[1].state, SpanState::kProvisional);
  EXPECT_EQ(canvas.spans[1].text, "E");
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

TEST_F(ChoiceStreamTest, CanvasesShowFinalProvisionalAndMaskedText) {
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
  const CanvasEvent canvas = std::get<CanvasEvent>(events[1]);
  ASSERT_THAT(canvas.spans, SizeIs(4));
  const std::vector<SpanState> states = {canvas.spans[0].state, canvas.spans[1].state, canvas.spans[2].state,
                                         canvas.spans[3].state};
  EXPECT_THAT(states, ElementsAre(SpanState::kFinal, SpanState::kMasked, SpanState::kProvisional, SpanState::kMasked));
  EXPECT_EQ(canvas.spans[0].text, text_->TokenBytes(ids[0]));
  EXPECT_EQ(canvas.spans[1].tokens, 1u);
  EXPECT_EQ(canvas.spans[2].text, text_->TokenBytes(ids[2]));
  EXPECT_EQ(canvas.spans[3].tokens, 3u);  // Positions 13 to 15.

  events = Apply(stream, WholeAnswer(Prompt(), ids));
  ASSERT_THAT(events, SizeIs(3));
  EXPECT_THAT(std::get<CanvasEvent>(events[1]).spans, SizeIs(1));
  EXPECT_EQ(std::get<CanvasEvent>(events[1]).spans[0].text, "def add(a, b):");
}

TEST_F(ChoiceStreamTest, CanvasesComeNoFasterThanAllowedUnlessABlockCloses) {
  settings_.canvases = true;
  settings_.canvas_interval = absl::Seconds(10);
  ChoiceStream stream(*text_, settings_);
  const std::vector<int32_t> ids = Ids("def add(a, b):");
  v1::SequenceUpdate open = FinalTokens(Prompt(), {ids[0]}, kPrompt, 1);
  open.set_final_before(kPrompt);
  EXPECT_THAT(Apply(stream, open), SizeIs(1));
  EXPECT_THAT(Apply(stream, open), SizeIs(0));
  EXPECT_THAT(Apply(stream, FinalTokens(Prompt(), {ids[0]}, kPrompt, 1)), SizeIs(2));
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
  EXPECT_EQ(changed.Apply(FinalTokens(Prompt(), {ids[0] + 1}, kPrompt, 2), now_, events).code(),
            absl::StatusCode::kInternal);

  ChoiceStream hole(*text_, settings_);
  v1::SequenceUpdate update = FinalTokens(Prompt(), {ids[0]}, kPrompt, 1);
  update.set_final_before(kPrompt + 2);
  EXPECT_EQ(hole.Apply(update, now_, events).code(), absl::StatusCode::kInternal);

  ChoiceStream in_prompt(*text_, settings_);
  EXPECT_EQ(in_prompt.Apply(FinalTokens(Prompt(), {ids[0]}, kPrompt - 1, 1), now_, events).code(),
            absl::StatusCode::kInternal);

  ChoiceStream far_off(*text_, settings_);
  EXPECT_EQ(far_off.Apply(FinalTokens(Prompt(), {ids[0]}, kPrompt + 40 + 8, 1), now_, events).code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace quicksilver
