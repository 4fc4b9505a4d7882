#include "worker/engine/pacer.h"

#include <vector>

#include "gtest/gtest.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kStep = absl::Milliseconds(10);

/// Two blocks of 8 from position 0, one token a step.
Sequence Fresh() {
  SequenceSpec spec;
  spec.mask_id = 99;
  spec.positions_max = 64;
  spec.prompt = std::vector<TokenId>(8, 1);
  spec.tokens_max = 16;
  spec.decoding.block_length = spec.decoding.steps = 8;
  return Sequence(spec);
}

StepOutcome Denoise(Sequence& sequence) {
  const std::vector<RowChoice> choices(
      sequence.asked().size(), RowChoice{.token = 3, .confidence = 0.5f, .log_probability = -1.0f, .finite = true});
  return sequence.ApplyDenoise(sequence.Next(100), choices);
}

TEST(PacerTest, SequencesWithoutATargetAreLeftAlone) {
  Pacer pacer;
  EXPECT_EQ(pacer.CommitsMin(1, Fresh(), absl::ZeroDuration(), kStep), 0);
  pacer.Add(1, absl::ZeroDuration());
  pacer.Remove(1);
  EXPECT_EQ(pacer.CommitsMin(1, Fresh(), absl::ZeroDuration(), kStep), 0);
}

TEST(PacerTest, AStepOfUnknownLengthSetsNoPace) {
  Pacer pacer;
  pacer.Add(1, kStep);
  EXPECT_EQ(pacer.CommitsMin(1, Fresh(), absl::ZeroDuration(), absl::ZeroDuration()), 0);
}

TEST(PacerTest, ASequenceOfWhichEveryStepIsPacedIsDoneByItsTarget) {
  for (int steps = 2; steps <= 20; ++steps) {
    Pacer pacer;
    pacer.Add(1, kStep * steps);
    Sequence sequence = Fresh();
    absl::Duration now;
    int done = 0;
    for (StepOutcome outcome; outcome.end == SequenceEndReason::kNone; ++done, now += kStep) {
      sequence.set_commits_min(pacer.CommitsMin(1, sequence, now, kStep));
      outcome = Denoise(sequence);
    }
    EXPECT_LE(done, steps);
    EXPECT_GE(done, std::min(steps, 16) - 3) << "no faster than it has to be, but for whole tokens and blocks";
  }
}

// Steps of its own come rarely where others take turns with it.
TEST(PacerTest, ASequenceThatGetsItsStepsRarelyIsPacedByThat) {
  Pacer pacer;
  pacer.Add(1, kStep * 20);
  Sequence sequence = Fresh();
  EXPECT_EQ(pacer.CommitsMin(1, sequence, absl::ZeroDuration(), kStep), 0);
  Denoise(sequence);
  // 15 masks are left, and in the time of 16 steps it gets 4.
  EXPECT_EQ(pacer.CommitsMin(1, sequence, kStep * 4, kStep), 4);
}

TEST(PacerTest, PastTheTargetWholeBlocksAreCommitted) {
  Pacer pacer;
  pacer.Add(1, kStep);
  EXPECT_EQ(pacer.CommitsMin(1, Fresh(), kStep * 3, kStep), 8);
}

}  // namespace
}  // namespace quicksilver
