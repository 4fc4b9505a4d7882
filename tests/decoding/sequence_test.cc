#include "worker/decoding/sequence.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

constexpr TokenId kMask = 99;
constexpr TokenId kStop = 50;

RowChoice Says(TokenId token, float confidence) {
  return {.token = token, .confidence = confidence, .log_probability = -1.0f, .finite = true};
}

/// SDAR-like: blocks of 4 from position 0, one token a step.
SequenceSpec BlockCausal(int32_t prompt, int32_t tokens_max) {
  SequenceSpec spec;
  spec.grid = BlockGrid::kAbsolute;
  spec.mask_id = kMask;
  spec.positions_max = 64;
  for (int32_t i = 0; i < prompt; ++i) spec.prompt.push_back(i);
  spec.tokens_max = tokens_max;
  spec.stop_ids = {kStop};
  spec.decoding.block_length = spec.decoding.steps = 4;
  spec.decoding.policy = Policy::kDynamic;
  return spec;
}

SequenceSpec Bidirectional(int32_t prompt, int32_t tokens_max, int32_t block, int32_t steps) {
  SequenceSpec spec = BlockCausal(prompt, tokens_max);
  spec.grid = BlockGrid::kAfterPrompt;
  spec.decoding.policy = Policy::kStatic;
  spec.decoding.block_length = block;
  spec.decoding.steps = steps;
  return spec;
}

/// The positions that the next step is asked about.
std::vector<int32_t> Asked(const Sequence& sequence) {
  std::vector<int32_t> positions;
  for (const RowAsk& ask : sequence.asked()) positions.push_back(ask.position);
  return positions;
}

/// One denoising step in which row i of the open block says tokens[i] with confidences[i].
StepOutcome Denoise(Sequence& sequence, const std::vector<TokenId>& tokens, const std::vector<float>& confidences) {
  std::vector<RowChoice> choices;
  for (size_t i = 0; i < tokens.size(); ++i) choices.push_back(Says(tokens[i], confidences[i]));
  return sequence.ApplyDenoise(sequence.Next(sequence.denoise_rows()), choices);
}

std::vector<int32_t> Positions(const StepOutcome& outcome) {
  std::vector<int32_t> positions;
  for (const TokenCommit& commit : outcome.commits) positions.push_back(commit.position);
  return positions;
}

/// All rows say `token` with full confidence until the sequence ends.
SequenceEndReason RunWith(Sequence& sequence, TokenId token) {
  for (;;) {
    const std::vector<RowChoice> choices(sequence.asked().size(), Says(token, 1.0f));
    const StepOutcome outcome = sequence.ApplyDenoise(sequence.Next(sequence.denoise_rows()), choices);
    if (outcome.end != SequenceEndReason::kNone) return outcome.end;
  }
}

TEST(SequenceTest, PromptTailSharesItsBlockWithTheAnswer) {
  Sequence sequence(BlockCausal(/*prompt=*/6, /*tokens_max=*/6));
  EXPECT_EQ(sequence.canvas().size(), 12u);
  EXPECT_THAT(Asked(sequence), ElementsAre(6, 7));
  EXPECT_EQ(sequence.prefill_rows(), 4);
  const Segment segment = sequence.Next(100);
  EXPECT_TRUE(segment.denoise) << "prefill and the first denoising share a forward when both fit";
  EXPECT_EQ(segment.first_position, 0);
  EXPECT_EQ(segment.rows, 8);
  EXPECT_EQ(segment.keys, 8);
}

TEST(SequenceTest, PrefillIsCutAtWholeBlocksWhenRowsAreFew) {
  Sequence sequence(BlockCausal(/*prompt=*/14, /*tokens_max=*/4));
  std::vector<int32_t> firsts, rows;
  while (sequence.prefill_rows() > 0) {
    const Segment segment = sequence.Next(7);
    if (segment.denoise) break;
    firsts.push_back(segment.first_position);
    rows.push_back(segment.rows);
    sequence.ApplyPrefill(segment);
  }
  EXPECT_THAT(firsts, ElementsAre(0, 4, 8));
  EXPECT_THAT(rows, ElementsAre(4, 4, 4));
  EXPECT_EQ(sequence.forwards(), 0) << "prefill is not counted";
  EXPECT_EQ(sequence.Next(7).first_position, 12);
}

// The KV of a closed block must be written from its clean tokens before a later block reads it.
TEST(SequenceTest, AClosedBlockIsRunOnceMoreInFrontOfTheNext) {
  Sequence sequence(BlockCausal(/*prompt=*/4, /*tokens_max=*/8));
  Denoise(sequence, {1, 1, 1, 1}, {1, 1, 1, 1});
  Segment segment = sequence.Next(sequence.denoise_rows());
  EXPECT_EQ(segment.first_position, 4);
  EXPECT_EQ(segment.rows, 8);
  EXPECT_THAT(Asked(sequence), ElementsAre(8, 9, 10, 11));
  Denoise(sequence, {1, 1, 1, 1}, {0.1f, 0.2f, 0.3f, 0.4f});
  segment = sequence.Next(sequence.denoise_rows());
  EXPECT_EQ(segment.first_position, 8) << "written once";
  EXPECT_EQ(segment.rows, 4);
  EXPECT_EQ(sequence.rows_needed_max(), 8);
}

TEST(SequenceTest, TheLastBlockIsNotWritten) {
  Sequence sequence(BlockCausal(4, 8));
  EXPECT_EQ(RunWith(sequence, 1), SequenceEndReason::kLength);
  EXPECT_EQ(sequence.forwards(), 2) << "one a block: KV writes ride along";
}

TEST(SequenceTest, TokensBecomeFinalWhenTheirBlockCloses) {
  Sequence sequence(BlockCausal(6, 6));
  EXPECT_EQ(sequence.final_before(), 6);
  EXPECT_FALSE(Denoise(sequence, {1, 2}, {0.3f, 0.2f}).block_closed);
  EXPECT_EQ(sequence.final_before(), 6);
  const StepOutcome outcome = Denoise(sequence, {2}, {0.2f});
  EXPECT_TRUE(outcome.block_closed);
  EXPECT_EQ(outcome.block, 1);
  EXPECT_EQ(sequence.final_before(), 8);
  EXPECT_EQ(sequence.block(), 2);
}

TEST(SequenceTest, AStopTokenEndsTheAnswerOnceNoMaskIsBeforeIt) {
  Sequence sequence(BlockCausal(4, 12));
  EXPECT_EQ(Denoise(sequence, {1, 2, kStop, 4}, {0.1f, 0.2f, 0.95f, 0.3f}).end, SequenceEndReason::kNone);
  EXPECT_EQ(Denoise(sequence, {1, 2, 4}, {0.95f, 0.2f, 0.3f}).end, SequenceEndReason::kNone);
  EXPECT_EQ(Denoise(sequence, {2, 4}, {0.5f, 0.3f}).end, SequenceEndReason::kStop) << "position 7 is still masked";
  EXPECT_EQ(sequence.final_before(), 6) << "the stop token is not part of the answer";
  EXPECT_EQ(sequence.forwards(), 3);
}

TEST(SequenceTest, FinishBlocksDenoisesTheBlockOfTheStopTokenToItsEnd) {
  SequenceSpec spec = BlockCausal(4, 12);
  spec.decoding.finish_blocks = true;
  Sequence sequence(spec);
  EXPECT_EQ(Denoise(sequence, {kStop, 2, 3, 4}, {0.95f, 0.95f, 0.95f, 0.3f}).end, SequenceEndReason::kNone);
  EXPECT_EQ(Denoise(sequence, {4}, {0.3f}).end, SequenceEndReason::kStop);
  EXPECT_EQ(sequence.final_before(), 4);
}

TEST(SequenceTest, AStopTokenInThePromptDoesNotEndTheAnswer) {
  SequenceSpec spec = BlockCausal(6, 4);
  spec.prompt[5] = kStop;
  Sequence sequence(spec);
  EXPECT_EQ(RunWith(sequence, 1), SequenceEndReason::kLength);
}

TEST(SequenceTest, TheBlockOfTheLastWantedTokenIsDecodedWholeAndCut) {
  Sequence sequence(BlockCausal(4, 2));
  EXPECT_EQ(Denoise(sequence, {1, 2, 3, 4}, {0.95f, 0.95f, 0.1f, 0.1f}).end, SequenceEndReason::kNone);
  EXPECT_EQ(Denoise(sequence, {3, 4}, {0.95f, 0.95f}).end, SequenceEndReason::kLength);
  EXPECT_EQ(sequence.final_before(), 6);
}

TEST(SequenceTest, AStopTokenPastTheLastWantedTokenIsCutOff) {
  Sequence sequence(BlockCausal(4, 2));
  EXPECT_EQ(Denoise(sequence, {1, 2, kStop, 4}, {1, 1, 1, 1}).end, SequenceEndReason::kLength);
}

TEST(SequenceTest, ARowThatIsNotFiniteEndsTheSequence) {
  Sequence sequence(BlockCausal(4, 8));
  std::vector<RowChoice> choices(4, Says(1, 1.0f));
  choices[2].finite = false;
  const StepOutcome outcome = sequence.ApplyDenoise(sequence.Next(8), choices);
  EXPECT_EQ(outcome.end, SequenceEndReason::kNumericalError);
  EXPECT_TRUE(outcome.commits.empty());
}

TEST(SequenceTest, SequentialGoesLeftToRight) {
  SequenceSpec spec = BlockCausal(4, 4);
  spec.decoding.policy = Policy::kSequential;
  spec.decoding.steps = 2;
  Sequence sequence(spec);
  EXPECT_THAT(Positions(Denoise(sequence, {1, 2, 3, 4}, {0.1f, 0.2f, 0.3f, 0.99f})), ElementsAre(4, 5));
  EXPECT_THAT(Positions(Denoise(sequence, {3, 4}, {0.1f, 0.2f})), ElementsAre(6, 7));
}

// The schedule of a block counts all of its positions: a prompt's tail leaves fewer steps, not smaller ones.
TEST(SequenceTest, StaticScheduleIsClampedToTheMasksOfThePromptsBlock) {
  SequenceSpec spec = BlockCausal(5, 3);
  spec.decoding.policy = Policy::kStatic;
  spec.decoding.steps = 2;
  Sequence sequence(spec);
  EXPECT_THAT(Positions(Denoise(sequence, {1, 2, 3}, {0.1f, 0.2f, 0.3f})), ElementsAre(6, 7));
  EXPECT_THAT(Positions(Denoise(sequence, {1}, {0.1f})), ElementsAre(5));
}

TEST(SequenceTest, BidirectionalStepsRunTheWholeCanvasAndFollowTheSchedule) {
  Sequence sequence(Bidirectional(/*prompt=*/3, /*tokens_max=*/8, /*block=*/4, /*steps=*/6));
  EXPECT_THAT(Asked(sequence), ElementsAre(3, 4, 5, 6));
  const Segment segment = sequence.Next(sequence.denoise_rows());
  EXPECT_EQ(segment.rows, 11);
  EXPECT_EQ(segment.keys, 11);
  EXPECT_THAT(Positions(Denoise(sequence, {1, 2, 3, 4}, {0.4f, 0.1f, 0.3f, 0.2f})), ElementsAre(3, 5));
  EXPECT_THAT(Positions(Denoise(sequence, {2, 4}, {0.1f, 0.2f})), ElementsAre(6)) << "3 steps: 2 + 1 + 1";
  EXPECT_TRUE(Denoise(sequence, {2}, {0.1f}).block_closed);
  EXPECT_THAT(Asked(sequence), ElementsAre(7, 8, 9, 10));
}

TEST(SequenceTest, StepsThatDoNotDivideGoToTheEarlyBlocks) {
  Sequence sequence(Bidirectional(1, 12, /*block=*/4, /*steps=*/8));  // 3, 3 and 2 steps.
  std::vector<int> steps_of_block(3, 0);
  for (SequenceEndReason end = SequenceEndReason::kNone; end == SequenceEndReason::kNone;) {
    const std::vector<RowChoice> choices(sequence.asked().size(), Says(1, 0.5f));
    const StepOutcome outcome = sequence.ApplyDenoise(sequence.Next(100), choices);
    ++steps_of_block[static_cast<size_t>(outcome.block)];
    end = outcome.end;
  }
  EXPECT_THAT(steps_of_block, ElementsAre(3, 3, 2));
}

TEST(SequenceTest, GuideRowsSeeAMaskedPromptAndDoubleTheRows) {
  SequenceSpec spec = Bidirectional(3, 4, 4, 4);
  spec.decoding.guidance_scale = 1.0f;
  const Sequence sequence(spec);
  EXPECT_TRUE(sequence.guided());
  EXPECT_EQ(sequence.denoise_rows(), 14);
  EXPECT_EQ(sequence.Next(14).rows, 7);
  EXPECT_EQ(sequence.GuideInputAt(2), kMask);
  EXPECT_EQ(sequence.canvas()[2], 2);
}

TEST(SequenceTest, DistrustedStopTokensAreWrittenLast) {
  SequenceSpec spec = Bidirectional(1, 4, 4, 4);
  spec.stop_ids.clear();
  spec.decoding.eos_ids = {kStop};
  spec.decoding.distrust_eos = true;
  Sequence sequence(spec);
  EXPECT_THAT(Positions(Denoise(sequence, {kStop, 1, 2, 3}, {0.9f, 0.1f, 0.2f, 0.3f})), ElementsAre(4));
  EXPECT_THAT(Positions(Denoise(sequence, {kStop, 1, 2}, {0.9f, 0.1f, 0.2f})), ElementsAre(3));
  EXPECT_THAT(Positions(Denoise(sequence, {kStop, kStop}, {0.1f, 0.9f})), ElementsAre(1));
}

TEST(SequenceTest, RandomRemaskingFollowsTheSeedAndNotTheConfidence) {
  const auto order = [](uint64_t seed, float confidence) {
    SequenceSpec spec = Bidirectional(1, 8, 8, 8);
    spec.decoding.remasking = Remasking::kRandom;
    spec.sampling.seed = seed;
    Sequence sequence(spec);
    std::vector<int32_t> positions;
    for (SequenceEndReason end = SequenceEndReason::kNone; end == SequenceEndReason::kNone;) {
      std::vector<RowChoice> choices(sequence.asked().size(), Says(1, 0.5f));
      choices[0].confidence = confidence;
      const StepOutcome outcome = sequence.ApplyDenoise(sequence.Next(100), choices);
      EXPECT_EQ(outcome.commits.size(), 1u);
      positions.push_back(outcome.commits[0].position);
      end = outcome.end;
    }
    return positions;
  };
  EXPECT_EQ(order(1, 0.1f), order(1, 0.9f));
  EXPECT_NE(order(1, 0.1f), order(2, 0.1f));
}

TEST(SequenceTest, DrawPlacesAreKeyedBySeedChoicePositionAndStep) {
  SequenceSpec spec = BlockCausal(4, 4);
  spec.sampling = {.temperature = 1.0f, .seed = 17, .choice = 3};
  Sequence sequence(spec);
  Denoise(sequence, {1, 2, 3, 4}, {0.1f, 0.2f, 0.3f, 0.4f});
  const DrawPlace place = sequence.PlaceOf(5);
  EXPECT_EQ(place.seed, 17u);
  EXPECT_EQ(place.choice, 3u);
  EXPECT_EQ(place.position, 5u);
  EXPECT_EQ(place.step, 1u);
}

}  // namespace
}  // namespace quicksilver
