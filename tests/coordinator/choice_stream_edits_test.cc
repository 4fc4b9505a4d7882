// Policies that take back what they wrote, canvases that grow, blocks with state of their own, families that count
// blocks from the prompt's end, and log-probabilities.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "coordinator/service/choice_stream.h"
#include "tests/coordinator/scripted_group.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr uint32_t kPrompt = 10;

class ChoiceStreamEditsTest : public testing::Test {
 protected:
  ChoiceStreamEditsTest() {
    settings_.prompt_tokens = kPrompt;
    settings_.max_tokens = 40;
    settings_.block_length = 8;
    settings_.positions_max = kPrompt + 48;
    settings_.canvases = true;
  }

  ChoiceStream Stream() const { return ChoiceStream(*text_, settings_); }
  static void Commit(v1::SequenceUpdate& update, uint32_t index, int32_t token, float log_probability = 0) {
    v1::Commit& commit = *update.add_commits();
    commit.set_position(kPrompt + index);
    commit.set_token(token);
    commit.set_log_probability(log_probability);
  }
  // Of the open block, which is the second one.
  static v1::SequenceUpdate Open(uint32_t step, const std::vector<std::pair<uint32_t, int32_t>>& commits) {
    v1::SequenceUpdate update;
    update.set_step(step);
    update.set_block_step(step);
    update.set_block(1);
    update.set_final_before(kPrompt);
    for (const auto& [index, token] : commits) Commit(update, index, token);
    return update;
  }
  std::vector<ChoiceEvent> Apply(ChoiceStream& stream, const v1::SequenceUpdate& update) {
    std::vector<ChoiceEvent> events;
    now_ += absl::Seconds(1);
    EXPECT_TRUE(stream.Apply(update, 1, now_, events).ok());
    return events;
  }
  FrameEvent LastFrame(ChoiceStream& stream, const v1::SequenceUpdate& update) {
    const std::vector<ChoiceEvent> events = Apply(stream, update);
    for (auto it = events.rbegin(); it != events.rend(); ++it) {
      if (const auto* frame = std::get_if<FrameEvent>(&*it)) return *frame;
    }
    ADD_FAILURE() << "no frame";
    return {};
  }
  std::string Bytes(const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) text += text_->TokenBytes(id);
    return text;
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  const std::vector<int32_t> ids_ = *text_->Encode("def add(a, b):", 100);
  ChoiceSettings settings_;
  absl::Duration now_;
};

TEST_F(ChoiceStreamEditsTest, AReplacedTokenComesAsACommitOfItsRun) {
  ChoiceStream stream = Stream();
  Apply(stream, Open(1, {{0, ids_[0]}, {1, ids_[1]}}));
  const FrameEvent frame = LastFrame(stream, Open(2, {{1, ids_[3]}}));
  ASSERT_THAT(frame.spans, SizeIs(1));
  EXPECT_EQ(frame.spans[0].op, SpanOp::kCommit);
  EXPECT_EQ(frame.spans[0].tokens, 2u);
  EXPECT_EQ(frame.spans[0].text, Bytes({ids_[0], ids_[3]}));
}

TEST_F(ChoiceStreamEditsTest, ATokenThatIsMaskedAgainReplacesTheCanvas) {
  ChoiceStream stream = Stream();
  Apply(stream, Open(1, {{0, ids_[0]}, {1, ids_[1]}, {2, ids_[2]}}));
  FrameEvent frame = LastFrame(stream, Open(2, {{1, -1}}));
  ASSERT_THAT(frame.spans, SizeIs(2));
  EXPECT_EQ(frame.spans[0].op, SpanOp::kReplace);
  EXPECT_EQ(frame.spans[0].text, Bytes({ids_[0]}));
  EXPECT_EQ(frame.spans[1].first, 2u);
  EXPECT_EQ(frame.spans[1].op, SpanOp::kReplace);
  EXPECT_THAT(stream.Record().tokens(), ElementsAre(ids_[0], -1, ids_[2]));
  frame = LastFrame(stream, Open(3, {{0, -1}, {2, -1}}));
  ASSERT_THAT(frame.spans, SizeIs(1));
  EXPECT_EQ(frame.spans[0].op, SpanOp::kReplace);
  EXPECT_EQ(frame.spans[0].tokens, 0u);
}

TEST_F(ChoiceStreamEditsTest, WhatIsFinalIsNeitherChangedNorMaskedAgain) {
  for (const int32_t token : {-1, ids_[1]}) {
    ChoiceStream stream = Stream();
    v1::SequenceUpdate update = Open(1, {{0, ids_[0]}});
    update.set_final_before(kPrompt + 1);
    Apply(stream, update);
    std::vector<ChoiceEvent> events;
    EXPECT_EQ(stream.Apply(Open(2, {{0, token}}), 1, now_, events).code(), absl::StatusCode::kInternal);
  }
}

TEST_F(ChoiceStreamEditsTest, ABlockWithStateIsBegunAnew) {
  ChoiceStream stream = Stream();
  v1::SequenceUpdate closed = Open(5, {});
  for (uint32_t i = 0; i < 6; ++i) Commit(closed, i, ids_[i]);
  closed.set_final_before(kPrompt + 6);
  closed.set_block_step(0);
  Apply(stream, closed);
  v1::SequenceUpdate open = Open(7, {{6, ids_[0]}, {8, ids_[1]}});
  open.set_final_before(kPrompt + 6);
  open.set_block_step(2);
  open.set_block(2);
  open.set_block_state(true);
  Apply(stream, open);

  stream.OnPlaced(/*resumes=*/true, now_);
  v1::Checkpoint record = stream.Record();
  EXPECT_EQ(record.step(), 5u);
  EXPECT_EQ(record.block_step(), 0u);
  EXPECT_EQ(record.final_before(), kPrompt + 6);
  EXPECT_THAT(record.tokens(), ElementsAre(ids_[0], ids_[1], ids_[2], ids_[3], ids_[4], ids_[5]));

  open = Open(6, {{7, ids_[3]}});
  open.set_final_before(kPrompt + 6);
  open.set_block_step(1);
  open.set_block(2);
  const FrameEvent frame = LastFrame(stream, open);
  ASSERT_THAT(frame.spans, SizeIs(1)) << "what the lost group wrote of the block is gone";
  EXPECT_EQ(frame.spans[0].op, SpanOp::kReplace);
  EXPECT_EQ(frame.spans[0].first, 7u);
  EXPECT_EQ(frame.step, 6u);

  stream.OnPlaced(/*resumes=*/true, now_);
  record = stream.Record();
  EXPECT_EQ(record.step(), 6u) << "without state it goes on in the block";
  EXPECT_EQ(record.block_step(), 1u);
  EXPECT_EQ(record.tokens_size(), 8);
}

TEST_F(ChoiceStreamEditsTest, ACanvasGrowsWhenTheWorkerSaysSo) {
  settings_.grid = v1::GRID_AFTER_PROMPT;
  settings_.suffix_tokens = 3;
  ChoiceStream stream = Stream();
  v1::SequenceUpdate update = Open(1, {{0, ids_[0]}});
  update.set_canvas_length(kPrompt + 12 + 3);
  EXPECT_EQ(LastFrame(stream, update).extent, 12u);
  EXPECT_EQ(LastFrame(stream, Open(2, {{1, ids_[1]}})).extent, 12u);
  update = Open(3, {{2, ids_[2]}});
  update.set_canvas_length(kPrompt + 20 + 3);
  EXPECT_EQ(LastFrame(stream, update).extent, 20u);
  EXPECT_EQ(stream.Record().canvas_length(), kPrompt + 20u + 3);
  update = Open(4, {});
  update.set_canvas_length(400);
  EXPECT_EQ(LastFrame(stream, update).extent, 40u) << "no further than the answer";
}

TEST_F(ChoiceStreamEditsTest, ABlockWithStateForgetsHowItGrew) {
  settings_.grid = v1::GRID_AFTER_PROMPT;
  ChoiceStream stream = Stream();
  v1::SequenceUpdate update = Open(2, {});
  for (uint32_t i = 0; i < 8; ++i) Commit(update, i, ids_[0]);
  update.set_final_before(kPrompt + 8);
  update.set_block_step(0);
  update.set_canvas_length(kPrompt + 16);
  Apply(stream, update);
  update = Open(3, {});
  update.set_final_before(kPrompt + 8);
  update.set_block_step(1);
  update.set_canvas_length(kPrompt + 24);
  update.set_block_state(true);
  Apply(stream, update);
  stream.OnPlaced(/*resumes=*/true, now_);
  EXPECT_EQ(stream.Record().canvas_length(), kPrompt + 16u);
  EXPECT_EQ(LastFrame(stream, Open(3, {})).extent, 16u);
}

TEST_F(ChoiceStreamEditsTest, TheExtentFollowsTheGrid) {
  const auto extent = [&](v1::Grid grid) {
    settings_.grid = grid;
    ChoiceStream stream = Stream();
    return LastFrame(stream, Open(1, {{0, ids_[0]}})).extent;  // Block 1.
  };
  EXPECT_EQ(extent(v1::GRID_ABSOLUTE), 6u);       // Positions 8 to 15.
  EXPECT_EQ(extent(v1::GRID_AFTER_PROMPT), 40u);  // All of it.
  EXPECT_EQ(extent(v1::GRID_CANVAS), 16u);        // The answer's first two canvases.
}

TEST_F(ChoiceStreamEditsTest, GivenTokensAreThereFromTheBeginning) {
  settings_.grid = v1::GRID_AFTER_PROMPT;
  settings_.given = {-1, ids_[1], -1, ids_[3]};
  ChoiceStream stream = Stream();
  const FrameEvent frame = LastFrame(stream, Open(1, {{0, ids_[0]}}));
  ASSERT_THAT(frame.spans, SizeIs(2));
  EXPECT_EQ(frame.spans[0].text, Bytes({ids_[0], ids_[1]}));
  EXPECT_EQ(frame.spans[1].text, Bytes({ids_[3]}));
  EXPECT_THAT(stream.Record().tokens(), ElementsAre(ids_[0], ids_[1], -1, ids_[3]));
  // The worker does not report what it did not write.
  v1::SequenceUpdate closed = Open(2, {{2, ids_[2]}});
  closed.set_final_before(kPrompt + 4);
  const std::vector<ChoiceEvent> events = Apply(stream, closed);
  EXPECT_EQ(std::get<DeltaEvent>(events.at(0)).text, Bytes({ids_[0], ids_[1], ids_[2], ids_[3]}));
}

TEST_F(ChoiceStreamEditsTest, ADraftIsWrittenBelowWhatIsGivenButNotOnTheCanvasGrid) {
  settings_.given = {-1, ids_[1]};
  settings_.draft = {ids_[0], ids_[2], ids_[3]};
  settings_.grid = v1::GRID_AFTER_PROMPT;
  EXPECT_THAT(Stream().Record().tokens(), ElementsAre(ids_[0], ids_[1], ids_[3]));
  settings_.grid = v1::GRID_CANVAS;
  ChoiceStream stream = Stream();
  EXPECT_THAT(stream.Record().tokens(), ElementsAre(-1, ids_[1]));
  v1::SequenceUpdate update = Open(1, {{0, ids_[5]}});
  update.set_block_state(true);
  Apply(stream, update);
  stream.OnPlaced(true, now_);
  EXPECT_THAT(stream.Record().tokens(), ElementsAre(-1, ids_[1]));
}

TEST_F(ChoiceStreamEditsTest, EachDeltaHasTheTokensOfItsTextAndWhatTheWorkerSaidOfThem) {
  settings_.canvases = false;
  settings_.log_probabilities = true;
  settings_.stops = {"END"};
  settings_.given = {ids_[0]};
  ChoiceStream stream = Stream();
  v1::SequenceUpdate update = Open(1, {});
  Commit(update, 1, ids_[1], -0.5f);
  Commit(update, 2, ids_[2], -std::numeric_limits<float>::infinity());
  v1::TopToken& top = *update.mutable_commits(0)->add_top();
  top.set_id(ids_[3]);
  top.set_log_probability(-0.125f);
  update.set_final_before(kPrompt + 3);
  const std::vector<ChoiceEvent> events = Apply(stream, update);
  const DeltaEvent& delta = std::get<DeltaEvent>(events.at(0));
  EXPECT_EQ(delta.text, Bytes({ids_[0], ids_[1], ids_[2]}));
  ASSERT_THAT(delta.tokens, SizeIs(3));
  EXPECT_EQ(delta.tokens[0].token.log_probability, kNoLogProbability) << "it was given";
  EXPECT_EQ(delta.tokens[1].token.log_probability, -0.5f);
  EXPECT_EQ(delta.tokens[1].token.bytes, text_->TokenBytes(ids_[1]));
  EXPECT_EQ(delta.tokens[1].offset, text_->TokenBytes(ids_[0]).size());
  ASSERT_THAT(delta.tokens[1].top, SizeIs(1));
  EXPECT_EQ(delta.tokens[1].top[0].bytes, text_->TokenBytes(ids_[3]));
  EXPECT_EQ(delta.tokens[1].top[0].log_probability, -0.125f);
  EXPECT_EQ(delta.tokens[2].token.log_probability, kNoLogProbability) << "no infinity is told";
}

TEST_F(ChoiceStreamEditsTest, TheEndSaysWhatWasRun) {
  ChoiceStream stream = Stream();
  v1::Submit submit;
  for (uint32_t i = 0; i < kPrompt; ++i) submit.add_prompt_ids(1);
  v1::SequenceUpdate update = WholeAnswer(submit, ids_);
  update.set_policy(v1::POLICY_HIERARCHICAL);
  update.set_cache(v1::CACHE_DUAL);
  const FinishedEvent finished = std::get<FinishedEvent>(Apply(stream, update).back());
  EXPECT_EQ(finished.policy, "hierarchical");
  EXPECT_EQ(finished.cache, "dual");
}

}  // namespace
}  // namespace quicksilver
