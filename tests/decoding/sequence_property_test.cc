// Random sequences against a made-up model: what must hold whatever the lengths, rules and row budgets.
#include <algorithm>
#include <set>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"
#include "worker/decoding/sequence.h"

namespace quicksilver {
namespace {

constexpr TokenId kMask = 99;
constexpr int kCases = 400;

/// Numbers of one test case.
class Dice {
 public:
  explicit Dice(uint64_t seed) : seed_(seed) {}
  int32_t Roll(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(Philox(seed_, n_++, 0, 0, 0).w[0] % static_cast<uint32_t>(high - low + 1));
  }

 private:
  uint64_t seed_;
  uint32_t n_ = 0;
};

SequenceSpec RandomSpec(Dice& dice) {
  SequenceSpec spec;
  spec.grid = dice.Roll(0, 1) == 0 ? BlockGrid::kAbsolute : BlockGrid::kAfterPrompt;
  spec.mask_id = kMask;
  spec.positions_max = 96;
  const int32_t prompt = dice.Roll(1, 40);
  for (int32_t i = 0; i < prompt; ++i) spec.prompt.push_back(dice.Roll(0, 90));
  spec.tokens_max = dice.Roll(1, 50);
  if (dice.Roll(0, 1) == 0) spec.stop_ids = {7};
  spec.decoding.block_length = 1 << dice.Roll(0, 4);
  spec.decoding.steps = dice.Roll(1, spec.decoding.block_length);
  if (spec.grid == BlockGrid::kAfterPrompt) spec.decoding.steps = dice.Roll(1, spec.tokens_max);
  spec.decoding.policy = static_cast<Policy>(dice.Roll(0, 3));
  spec.decoding.threshold = static_cast<float>(dice.Roll(0, 10)) / 10.0f;
  spec.decoding.guidance_scale = spec.grid == BlockGrid::kAfterPrompt && dice.Roll(0, 1) == 0 ? 1.0f : 0.0f;
  spec.decoding.finish_blocks = dice.Roll(0, 1) == 0;
  return spec;
}

/// A model: what a masked row says depends on every token it can see.
RowChoice Says(const Sequence& sequence, int32_t position, int32_t keys) {
  uint64_t hash = static_cast<uint64_t>(position) * 0x9E3779B97F4A7C15u;
  for (int32_t p = 0; p < keys; ++p) {
    hash = (hash ^ static_cast<uint64_t>(sequence.canvas()[static_cast<size_t>(p)])) * 0x100000001B3u;
  }
  const PhiloxWords words = Philox(hash, 1, 2, 3, 4);
  return {.token = static_cast<TokenId>(words.w[0] % 60),
          .confidence = static_cast<float>(words.w[1] % 1000) / 1000.0f,
          .log_probability = -1.0f,
          .finite = true};
}

struct Outcome {
  std::vector<TokenId> canvas;
  int32_t final_before = 0;
  int32_t forwards = 0;
  SequenceEndReason end = SequenceEndReason::kNone;
};

/// Runs a sequence to its end, with random budgets when `dice` is given, and checks every step on the way.
Outcome RunToEnd(const SequenceSpec& spec, Dice* dice) {
  Sequence sequence(spec);
  const int32_t positions = static_cast<int32_t>(sequence.canvas().size());
  std::vector<TokenId> cache(static_cast<size_t>(positions), -1);  // The token that each KV slot was computed from.
  std::set<int32_t> committed;
  Outcome run;
  for (int step = 0; run.end == SequenceEndReason::kNone && step < 1000; ++step) {
    const int32_t least = sequence.prefill_rows() > 0 ? spec.decoding.block_length : sequence.denoise_rows();
    const int32_t budget = dice == nullptr ? 1000 : dice->Roll(least, least + 40);
    const Segment segment = sequence.Next(budget);
    EXPECT_LE(segment.rows * (sequence.guided() ? 2 : 1), budget);
    EXPECT_LE(segment.first_position + segment.rows, positions);
    // Exactness: keys in front of the segment were computed from the tokens that stand there now.
    for (int32_t p = 0; p < segment.first_position; ++p) {
      EXPECT_EQ(cache[static_cast<size_t>(p)], sequence.canvas()[static_cast<size_t>(p)]);
    }
    for (int32_t p = segment.first_position; p < segment.first_position + segment.rows; ++p) {
      cache[static_cast<size_t>(p)] = sequence.canvas()[static_cast<size_t>(p)];
    }
    if (!segment.denoise) {
      sequence.ApplyPrefill(segment);
      continue;
    }
    std::vector<RowChoice> choices;
    for (const RowAsk& ask : sequence.asked()) choices.push_back(Says(sequence, ask.position, segment.keys));
    const int32_t final_was = sequence.final_before();
    const StepOutcome outcome = sequence.ApplyDenoise(segment, choices);
    EXPECT_FALSE(outcome.commits.empty()) << "every step makes progress";
    for (const TokenCommit& commit : outcome.commits) {
      EXPECT_TRUE(committed.insert(commit.position).second) << "a position is written once";
      EXPECT_GE(commit.position, final_was) << "final means final";
      EXPECT_EQ(sequence.canvas()[static_cast<size_t>(commit.position)], commit.token);
    }
    EXPECT_GE(sequence.final_before(), final_was);
    run.end = outcome.end;
  }
  run.canvas.assign(sequence.canvas().begin(), sequence.canvas().end());
  run.final_before = sequence.final_before();
  run.forwards = sequence.forwards();
  return run;
}

TEST(SequencePropertyTest, EverySequenceEndsWithACleanAnswerWithinItsBounds) {
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const SequenceSpec spec = RandomSpec(dice);
    const int32_t prompt = static_cast<int32_t>(spec.prompt.size());
    const Outcome run = RunToEnd(spec, &dice);
    ASSERT_TRUE(run.end == SequenceEndReason::kStop || run.end == SequenceEndReason::kLength);
    EXPECT_LE(run.final_before, prompt + spec.tokens_max);
    for (int32_t p = 0; p < run.final_before; ++p) {
      const TokenId token = run.canvas[static_cast<size_t>(p)];
      EXPECT_NE(token, kMask);
      const bool is_stop = std::binary_search(spec.stop_ids.begin(), spec.stop_ids.end(), token);
      EXPECT_FALSE(p >= prompt && is_stop) << "the answer is cut at its first stop token";
    }
    EXPECT_EQ(run.end == SequenceEndReason::kLength, run.final_before == prompt + spec.tokens_max);
    EXPECT_LE(run.forwards, static_cast<int32_t>(run.canvas.size()) - prompt) << "at least one token a forward";
  }
}

TEST(SequencePropertyTest, TheAnswerDoesNotDependOnHowItsStepsAreCut) {
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const SequenceSpec spec = RandomSpec(dice);
    const Outcome whole = RunToEnd(spec, nullptr);
    const Outcome cut = RunToEnd(spec, &dice);
    EXPECT_EQ(cut.canvas, whole.canvas);
    EXPECT_EQ(cut.final_before, whole.final_before);
    EXPECT_EQ(cut.forwards, whole.forwards);
    EXPECT_EQ(cut.end, whole.end);
  }
}

/// One denoising step, in front of it as many prefills as it takes.
StepOutcome Step(Sequence& sequence, Dice& dice) {
  for (;;) {
    const int32_t least = sequence.prefill_rows() > 0 ? sequence.spec().decoding.block_length : sequence.denoise_rows();
    EXPECT_LE(least, sequence.rows_needed_max()) << "a step of that many rows must always do";
    const Segment segment = sequence.Next(dice.Roll(least, least + 40));
    if (!segment.denoise) {
      sequence.ApplyPrefill(segment);
      continue;
    }
    std::vector<RowChoice> choices;
    for (const RowAsk& ask : sequence.asked()) choices.push_back(Says(sequence, ask.position, segment.keys));
    return sequence.ApplyDenoise(segment, choices);
  }
}

/// What a coordinator knows of a sequence: after every step, or of finished blocks alone.
Resumption StateOf(const Sequence& sequence) {
  Resumption state;
  state.forwards = sequence.forwards();
  state.block_forwards = sequence.block_forwards();
  state.final_before = sequence.final_before();
  for (size_t p = sequence.spec().prompt.size(); p < sequence.canvas().size(); ++p) {
    state.tokens.push_back(sequence.canvas()[p] == kMask ? -1 : sequence.canvas()[p]);
  }
  return state;
}

bool SameStep(const StepOutcome& a, const StepOutcome& b) {
  const auto same = [](const TokenCommit& x, const TokenCommit& y) {
    return x.position == y.position && x.token == y.token && x.confidence == y.confidence;
  };
  return a.block == b.block && a.block_closed == b.block_closed && a.end == b.end &&
         std::equal(a.commits.begin(), a.commits.end(), b.commits.begin(), b.commits.end(), same);
}

// A resumed sequence does what the undisturbed one would have done, whatever it was cut at: after any step, at block
// boundaries, and with its KV dropped on the way.
TEST(SequencePropertyTest, AResumedSequenceGoesOnAsIfNothingHadHappened) {
  int cuts = 0;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const SequenceSpec spec = RandomSpec(dice);
    Sequence undisturbed(spec), moved(spec);
    for (SequenceEndReason end = SequenceEndReason::kNone; end == SequenceEndReason::kNone;) {
      const StepOutcome expected = Step(undisturbed, dice);
      const StepOutcome found = Step(moved, dice);
      ASSERT_TRUE(SameStep(expected, found));
      ASSERT_EQ(moved.forwards(), undisturbed.forwards());
      ASSERT_EQ(moved.final_before(), undisturbed.final_before());
      end = expected.end;
      const int32_t act = dice.Roll(0, 3);
      if (end != SequenceEndReason::kNone || act == 0) continue;
      if (act == 1) {
        moved.DropKv();
        EXPECT_EQ(moved.written(), 0);
        continue;
      }
      if (act == 2 && !expected.block_closed) continue;
      SequenceSpec rest = spec;
      rest.resumption = StateOf(moved);
      const absl::Status valid = CheckResumption(rest);
      ASSERT_TRUE(valid.ok()) << valid;
      moved = Sequence(rest);
      ++cuts;
    }
  }
  EXPECT_GT(cuts, 1000);
}

// Checkpoints come from other programs: whatever is accepted must run, and most damage must be noticed.
TEST(SequencePropertyTest, ADamagedCheckpointIsRefusedOrRunsToItsEnd) {
  int refused = 0, ran = 0;
  for (uint64_t seed = 0; seed < 10 * kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    SequenceSpec spec = RandomSpec(dice);
    Sequence sequence(spec);
    SequenceEndReason end = SequenceEndReason::kNone;
    for (int steps = dice.Roll(0, 12); steps > 0 && end == SequenceEndReason::kNone; --steps) {
      end = Step(sequence, dice).end;
    }
    Resumption state = StateOf(sequence);
    switch (dice.Roll(0, 5)) {
      case 0:
        state.forwards += dice.Roll(-3, 3);
        break;
      case 1:
        state.block_forwards += dice.Roll(-3, 3);
        break;
      case 2:
        state.final_before += dice.Roll(-20, 20);
        break;
      case 3:
        state.tokens.resize(static_cast<size_t>(dice.Roll(0, 120)), dice.Roll(-1, 90));
        break;
      case 4:
        state.tokens[static_cast<size_t>(dice.Roll(0, static_cast<int32_t>(state.tokens.size()) - 1))] =
            dice.Roll(-1, 90);
        break;
      default:
        state = {dice.Roll(-1, 100), dice.Roll(-1, 20), dice.Roll(-1, 100), state.tokens};
    }
    spec.resumption = state;
    if (!CheckResumption(spec).ok()) {
      ++refused;
      continue;
    }
    ++ran;
    Sequence resumed(spec);
    EXPECT_FALSE(resumed.asked().empty());
    for (int steps = 0; steps < 200; ++steps) {
      if (Step(resumed, dice).end != SequenceEndReason::kNone) break;
      ASSERT_LT(steps, 199);
    }
  }
  EXPECT_GT(refused, 5 * kCases);
  EXPECT_GT(ran, kCases);
}

// What a deadline leaves is the clean front of the canvas, and no more.
TEST(SequencePropertyTest, ADeadlineLeavesTheTokensBeforeTheFirstMask) {
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const SequenceSpec spec = RandomSpec(dice);
    Sequence sequence(spec);
    SequenceEndReason end = SequenceEndReason::kNone;
    for (int steps = dice.Roll(0, 8); steps > 0 && end == SequenceEndReason::kNone; --steps) {
      end = Step(sequence, dice).end;
    }
    if (end != SequenceEndReason::kNone) continue;
    const StepOutcome outcome = sequence.EndAtDeadline();
    EXPECT_EQ(outcome.end, SequenceEndReason::kDeadline);
    const int32_t prompt = static_cast<int32_t>(spec.prompt.size());
    int32_t expected = prompt;
    const auto at = [&](int32_t p) { return sequence.canvas()[static_cast<size_t>(p)]; };
    const auto is_stop = [&](int32_t p) { return spec.stop_ids == std::vector<TokenId>{at(p)}; };
    while (expected < prompt + spec.tokens_max && at(expected) != kMask && !is_stop(expected)) ++expected;
    EXPECT_EQ(sequence.final_before(), expected);
  }
}

TEST(SequencePropertyTest, APacedSequenceCommitsAtLeastItsPaceAndSaysWhenThatWasMore) {
  int paced = 0;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const SequenceSpec spec = RandomSpec(dice);
    Sequence sequence(spec);
    for (SequenceEndReason end = SequenceEndReason::kNone; end == SequenceEndReason::kNone;) {
      const int32_t pace = dice.Roll(0, spec.decoding.block_length);
      SequenceSpec rest = spec;
      rest.resumption = StateOf(sequence);
      Sequence unpaced(rest);
      const size_t would = Step(unpaced, dice).commits.size();
      sequence.set_commits_min(pace);
      const size_t masks = sequence.asked().size();
      const StepOutcome outcome = Step(sequence, dice);
      EXPECT_EQ(outcome.commits.size(), std::max(would, std::min(masks, static_cast<size_t>(pace))));
      EXPECT_EQ(outcome.paced, outcome.commits.size() > would);
      paced += outcome.paced ? 1 : 0;
      end = outcome.end;
    }
  }
  EXPECT_GT(paced, 100);
}

// Ending within a block must not change what a client sees.
TEST(SequencePropertyTest, FinishingTheBlockOfAStopTokenChangesNothingVisible) {
  int stopped = 0;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    SequenceSpec spec = RandomSpec(dice);
    spec.decoding.finish_blocks = false;
    const Outcome early = RunToEnd(spec, nullptr);
    spec.decoding.finish_blocks = true;
    const Outcome late = RunToEnd(spec, nullptr);
    ASSERT_EQ(early.end, late.end);
    ASSERT_EQ(early.final_before, late.final_before);
    EXPECT_TRUE(std::equal(early.canvas.begin(), early.canvas.begin() + early.final_before, late.canvas.begin()));
    EXPECT_LE(early.forwards, late.forwards);
    stopped += early.forwards < late.forwards ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
}

}  // namespace
}  // namespace quicksilver
