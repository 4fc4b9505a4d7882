// What a sequence does beyond rank policies on whole canvases: caches, the shift, given tokens, edits, biases, growth.
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/decoding/sequence.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr TokenId kMask = 99;
constexpr TokenId kStop = 7;

/// Prompt of `prompt` tokens, an answer of `tokens_max` in blocks of `block` behind it.
SequenceSpec Bidirectional(int32_t prompt, int32_t tokens_max, int32_t block) {
  SequenceSpec spec;
  spec.grid = BlockGrid::kAfterPrompt;
  spec.mask_id = kMask;
  spec.positions_max = 256;
  spec.prompt.assign(static_cast<size_t>(prompt), 1);
  spec.tokens_max = tokens_max;
  spec.stop_ids = {kStop};
  spec.decoding.policy = Policy::kThreshold;
  spec.decoding.threshold = 0.9f;
  spec.decoding.block_length = block;
  spec.decoding.steps = tokens_max;
  spec.decoding.mask_id = kMask;
  return spec;
}

std::vector<int32_t> Asked(const Sequence& sequence) {
  std::vector<int32_t> positions;
  for (const RowAsk& ask : sequence.asked()) positions.push_back(ask.position);
  return positions;
}

/// A step in which every row says `token`; the last one with full confidence.
StepOutcome Step(Sequence& sequence, TokenId token = 2) {
  std::vector<RowChoice> choices(sequence.asked().size());
  for (RowChoice& choice : choices) choice = {.token = token, .confidence = 0.5f, .finite = true};
  choices.back().confidence = 1.0f;
  return sequence.ApplyDenoise(sequence.Next(sequence.denoise_rows()), choices);
}

struct Rows {
  int32_t first, count, keys;
  bool operator==(const Rows&) const = default;
};

Rows Next(const Sequence& sequence) {
  const Segment segment = sequence.Next(sequence.denoise_rows());
  return {segment.first_position, segment.rows, segment.keys};
}

TEST(CachedSequenceTest, ABlocksFirstPassIsWholeAndTheOthersRunWhatTheCacheDoesNotKeep) {
  for (const auto& [cache, later, next_later] : {std::tuple{Cache::kNone, Rows{0, 20, 20}, Rows{0, 20, 20}},
                                                 {Cache::kPrefix, Rows{8, 12, 20}, Rows{12, 8, 20}},
                                                 {Cache::kDual, Rows{8, 4, 20}, Rows{12, 4, 20}}}) {
    SequenceSpec spec = Bidirectional(8, 12, 4);
    spec.decoding.cache = cache;
    Sequence sequence(spec);
    EXPECT_EQ(Next(sequence), (Rows{0, 20, 20}));
    EXPECT_EQ(sequence.Next(20).repeats, cache == Cache::kNone) << "a device must not repeat the pass that fills it";
    Step(sequence);
    EXPECT_EQ(Next(sequence), later);
    EXPECT_TRUE(sequence.Next(20).repeats);
    EXPECT_EQ(sequence.must_keep_kv(), cache != Cache::kNone);
    while (sequence.block() == 0) Step(sequence);
    EXPECT_FALSE(sequence.must_keep_kv());
    EXPECT_EQ(Next(sequence), (Rows{0, 20, 20}));
    Step(sequence);
    EXPECT_EQ(Next(sequence), next_later);
    EXPECT_EQ(sequence.stateful(), cache != Cache::kNone);
  }
}

TEST(CachedSequenceTest, AVicinityIsRunAfterTheWarmUpAndThePassThatFillsTheCache) {
  SequenceSpec spec = Bidirectional(8, 12, 4);
  spec.decoding.cache = Cache::kVicinity;
  spec.decoding.vicinity_before = 3;
  spec.decoding.vicinity_after = 2;
  spec.decoding.vicinity_warmup = 2;
  Sequence sequence(spec);
  std::vector<int32_t> rows;
  while (sequence.block() < 2) {
    rows.push_back(Next(sequence).count);
    Step(sequence);
  }
  EXPECT_THAT(rows, ElementsAre(20, 20, 20, 9, 20, 9, 9, 9));
  Step(sequence);
  EXPECT_EQ(Next(sequence), (Rows{13, 7, 20})) << "cut at the canvas's end";
}

// The row in front of the block is run by no later pass.
TEST(CachedSequenceTest, WithTheShiftAWholePassWritesTheBlocksFirstPositionAlone) {
  SequenceSpec spec = Bidirectional(8, 8, 4);
  spec.shift = true;
  spec.decoding.cache = Cache::kDual;
  Sequence sequence(spec);
  EXPECT_THAT(Asked(sequence), ElementsAre(8));
  EXPECT_EQ(sequence.PredictorOf(8), 7);
  EXPECT_EQ(sequence.rule().policy, Policy::kHost);
  EXPECT_EQ(Step(sequence).commits.size(), 1u);
  EXPECT_THAT(Asked(sequence), ElementsAre(9, 10, 11));
  EXPECT_EQ(Next(sequence), (Rows{8, 4, 16}));
  EXPECT_EQ(sequence.rule().policy, Policy::kThreshold);
}

SequenceSpec Shifted(int32_t prompt, int32_t tokens_max, int32_t block) {
  SequenceSpec spec = Bidirectional(prompt, tokens_max, block);
  spec.grid = BlockGrid::kAbsolute;
  spec.shift = true;
  spec.decoding.steps = block;
  return spec;
}

TEST(ShiftedSequenceTest, TheForwardThatWritesABlockPredictsTheFirstPositionOfTheNext) {
  Sequence sequence(Shifted(8, 8, 4));
  EXPECT_EQ(sequence.cacheable_before(), 4) << "the last block is run all the same";
  EXPECT_EQ(Next(sequence), (Rows{0, 8, 8}));
  EXPECT_THAT(Asked(sequence), ElementsAre(8));
  Step(sequence);
  EXPECT_EQ(Next(sequence), (Rows{8, 4, 12}));
  EXPECT_THAT(Asked(sequence), ElementsAre(9, 10, 11));
  while (sequence.block() == 2) Step(sequence);
  EXPECT_EQ(Next(sequence), (Rows{8, 4, 12})) << "clean now";
  EXPECT_THAT(Asked(sequence), ElementsAre(12));
}

TEST(ShiftedSequenceTest, APromptsTailHoldsTheFirstPosition) {
  Sequence sequence(Shifted(6, 8, 4));
  EXPECT_EQ(Next(sequence), (Rows{0, 8, 8}));
  EXPECT_THAT(Asked(sequence), ElementsAre(6, 7));
}

TEST(ShiftedSequenceTest, BlocksOfOneAreOneRowAForward) {
  SequenceSpec spec = Shifted(5, 4, 1);
  spec.decoding.policy = Policy::kAutoregressive;
  Sequence sequence(spec);
  EXPECT_EQ(Next(sequence), (Rows{0, 5, 5}));
  EXPECT_TRUE(Step(sequence).block_closed);
  EXPECT_EQ(Next(sequence), (Rows{5, 1, 6}));
  Step(sequence);
  Step(sequence);
  EXPECT_EQ(Step(sequence).end, SequenceEndReason::kLength);
  EXPECT_EQ(sequence.forwards(), 4);
}

TEST(GivenTokensTest, AreThereFromTheBeginningAndAreNeverWritten) {
  SequenceSpec spec = Bidirectional(4, 6, 4);
  spec.suffix = {31, 32, 33};
  spec.fixed = {-1, 21, -1, -1, 22};
  spec.draft = {-1, -1, 23};
  ASSERT_TRUE(CheckInfill(spec).ok());
  Sequence sequence(spec);
  EXPECT_THAT(sequence.canvas(), ElementsAre(1, 1, 1, 1, kMask, 21, 23, kMask, 22, kMask, 31, 32, 33))
      << "nothing stands between answer and suffix";
  EXPECT_THAT(Asked(sequence), ElementsAre(4, 7));
  while (sequence.block() == 0) Step(sequence);
  EXPECT_THAT(Asked(sequence), ElementsAre(9));
  EXPECT_EQ(Step(sequence).end, SequenceEndReason::kLength);
  EXPECT_EQ(sequence.final_before(), 10);
}

TEST(GivenTokensTest, ABlockThatIsGivenWholeIsNotRun) {
  SequenceSpec spec = Bidirectional(4, 12, 4);
  spec.fixed = {2, 2, 2, 2, -1, -1, -1, -1, 2, 2, 2, 2};
  Sequence sequence(spec);
  EXPECT_EQ(sequence.block(), 1);
  EXPECT_EQ(sequence.final_before(), 8);
  while (sequence.final_before() == 8) Step(sequence);
  EXPECT_EQ(sequence.final_before(), 16) << "the last one closed with the second";
}

TEST(GivenTokensTest, RefusalsNameTheField) {
  const auto refusal = [](auto change) {
    SequenceSpec spec = Bidirectional(4, 4, 4);
    change(spec);
    return std::string(CheckInfill(spec).message());
  };
  EXPECT_THAT(refusal([](SequenceSpec& s) { s.fixed = {1, 2, 3, 4, 5}; }), HasSubstr("fixed_ids (5)"));
  EXPECT_THAT(refusal([](SequenceSpec& s) { s.fixed = {1, 2, 3, 4}; }), HasSubstr("fixed_ids (4)"));
  EXPECT_THAT(refusal([](SequenceSpec& s) { s.draft = {1, 2, 3, 4}; }), HasSubstr("draft_ids (4)"));
  EXPECT_THAT(refusal([](SequenceSpec& s) { s.fixed = {1, kStop}; }), HasSubstr("fixed_ids[1] (7)"));
  EXPECT_THAT(refusal([](SequenceSpec& s) {
                s.grid = BlockGrid::kAbsolute;
                s.suffix = {1};
              }),
              HasSubstr("suffix_ids (1)"));
  EXPECT_THAT(refusal([](SequenceSpec& s) { s.suffix.assign(300, 1); }), HasSubstr("suffix_ids (300)"));
}

TEST(EditingSequenceTest, AStopTokenEndsTheAnswerWithItsBlockAlone) {
  SequenceSpec spec = Bidirectional(4, 8, 4);
  spec.decoding.policy = Policy::kTokenEdit;
  spec.decoding.edit_threshold = 0.7f;
  spec.decoding.post_steps_max = 4;
  spec.decoding.threshold = 0.4f;
  Sequence sequence(spec);
  EXPECT_EQ(Step(sequence, kStop).end, SequenceEndReason::kNone) << "it may be edited away";
  EXPECT_EQ(sequence.NextStop(), -1);
  EXPECT_EQ(sequence.asked().size(), 4u) << "written rows are looked at again";
  const StepOutcome edited = Step(sequence, 5);
  ASSERT_EQ(edited.commits.size(), 1u) << "the one that is sure enough";
  EXPECT_EQ(edited.commits[0].position, 7);
  EXPECT_FALSE(edited.block_closed);
  StepOutcome last;
  while (last.end == SequenceEndReason::kNone) last = Step(sequence, 5);
  EXPECT_EQ(last.end, SequenceEndReason::kStop);
  EXPECT_EQ(sequence.final_before(), 4);
}

TEST(BiasedSequenceTest, PenaltiesCountWhatTheAnswerHasAndForbiddenIdsStayForbidden) {
  SequenceSpec spec = Bidirectional(4, 8, 8);
  spec.presence_penalty = 0.5f;
  spec.frequency_penalty = 0.25f;
  spec.biases = {{2, -INFINITY}, {5, 1.0f}};
  spec.draft = {5, 5, 6};
  const Sequence sequence(spec);
  std::vector<TokenBias> biases;
  sequence.AppendBiases(sequence.asked()[0], biases);
  ASSERT_EQ(biases.size(), 3u);
  EXPECT_EQ(biases[0].id, 2);
  EXPECT_EQ(biases[0].bias, -INFINITY);
  EXPECT_EQ(biases[1].id, 5);
  EXPECT_EQ(biases[1].bias, 0.0f) << "1 - 0.5 - 2 x 0.25";
  EXPECT_EQ(biases[2].bias, -0.75f);
  EXPECT_FALSE(sequence.Next(64).repeats) << "what is written changes what is added";
}

TEST(StatefulSequenceTest, AResumptionAmidABlockIsRefused) {
  SequenceSpec spec = Bidirectional(4, 8, 4);
  spec.decoding.cache = Cache::kDual;
  spec.resumption = Resumption{.forwards = 1, .block_forwards = 1, .final_before = 4, .tokens = {2, -1, -1, -1}};
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("checkpoint.block_step (1) must be 0"));
  spec.resumption = Resumption{.forwards = 2, .block_forwards = 0, .final_before = 8, .tokens = {2, 2, 2, 2}};
  EXPECT_TRUE(CheckResumption(spec).ok()) << CheckResumption(spec);
}

TEST(GivenResumptionTest, OnTheCanvasGridADraftIsNothingThatWasDecided) {
  SequenceSpec spec = Bidirectional(4, 8, 4);
  spec.grid = BlockGrid::kCanvas;
  spec.decoding.cache = Cache::kDual;  // State of the open block, as every procedure of that grid has.
  spec.fixed = {-1, 3};
  spec.draft = {2, 2, 2, 2, 5, 5, 5, 5};
  spec.resumption = Resumption{.final_before = 4, .tokens = {2, 3, 2, 2, 5, 5, 5, 5}};
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("tokens[4] (5) must be -1"));
  spec.resumption->tokens.resize(4);
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("-1 in the open block"));
  spec.resumption->tokens = {-1, 3};
  ASSERT_TRUE(CheckResumption(spec).ok()) << CheckResumption(spec);
  EXPECT_EQ(Sequence(spec).remaining().open, 3);
}

TEST(GivenResumptionTest, WhatLeavesNothingToBeDecidedIsRefused) {
  SequenceSpec spec = Bidirectional(4, 8, 4);
  spec.decoding.policy = Policy::kMultiBlock;
  spec.draft = {2, 2, 2, 2};
  spec.resumption = Resumption{.final_before = 4, .tokens = {2, 2, 2, 2, 5, 5, 5, 5}};
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("it has no mask"));
  spec.resumption->tokens = {2, 2, 2, 2, 5, 5, 5, 5, 5};
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("the answer ends at 12"));
  spec.resumption->tokens = {2, 2, 2, 2, 5, -1, 5, 5};
  ASSERT_TRUE(CheckResumption(spec).ok()) << CheckResumption(spec);
  EXPECT_EQ(Sequence(spec).open_block_start(), 8);
}

TEST(GivenResumptionTest, AFullOpenBlockIsRefusedOnceItIsBegunOrHasAStopToken) {
  SequenceSpec spec = Bidirectional(4, 8, 4);
  spec.draft = {2, 2};
  spec.resumption = Resumption{.forwards = 1, .block_forwards = 1, .final_before = 4, .tokens = {2, 2, 3, 3}};
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("block_step (1) must be 0"));
  spec.decoding.finish_blocks = true;
  spec.resumption = Resumption{.final_before = 4, .tokens = {2, 2, kStop, 3}};
  EXPECT_THAT(std::string(CheckResumption(spec).message()), HasSubstr("tokens[2] (7) must be no stop token"));
}

}  // namespace
}  // namespace quicksilver
