#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/fake_model.h"
#include "worker/decoding/decoding_fields.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/decoding/sequence.h"

// Every policy that a family may run, as sequences run it: with random requests over made-up networks.

namespace quicksilver {
namespace {

constexpr TokenId kMask = FakeModel::kMask;
constexpr int32_t kCases = 20;

ModelSpec SpecOf(const std::string& family, BlockGrid grid, int32_t block_length, bool shift) {
  ModelSpec spec;
  spec.family = family;
  spec.grid = grid;
  spec.block_length = block_length;
  spec.shift = shift;
  spec.positions_max = 96;
  spec.tokens = FakeModel::kVocabulary;
  spec.mask_id = kMask;
  spec.stop_ids = {FakeModel::kEos};
  spec.eos_id = FakeModel::kEos;
  if (family == "llada2") {
    spec.delete_id = FakeModel::kDelete;
    spec.insert_id = FakeModel::kInsert;
  }
  return spec;
}

std::vector<ModelSpec> Families() {
  return {SpecOf("llada", BlockGrid::kAfterPrompt, 8, false),  SpecOf("dream", BlockGrid::kAfterPrompt, 0, true),
          SpecOf("llada2", BlockGrid::kAbsolute, 8, false),    SpecOf("sdar", BlockGrid::kAbsolute, 4, false),
          SpecOf("fast_dllm2", BlockGrid::kAbsolute, 8, true), SpecOf("qwen2", BlockGrid::kAbsolute, 1, true)};
}

struct Dice {
  uint64_t seed = 0;
  uint32_t rolled = 0;
  int32_t Roll(int32_t least, int32_t most) {
    const uint32_t word = Philox(seed, rolled++, 9, 9, 9).w[0];
    return least + static_cast<int32_t>(word % static_cast<uint32_t>(most - least + 1));
  }
  bool Flip() { return Roll(0, 1) == 1; }
};

void Infill(Dice& dice, SequenceSpec& spec) {
  for (int32_t i = 0; i < spec.tokens_max; ++i) {
    const int32_t kind = dice.Roll(0, 5);
    spec.fixed.push_back(kind == 0 ? dice.Roll(0, 19) : -1);
    spec.draft.push_back(kind == 1 ? dice.Roll(0, 19) : -1);
  }
  if (spec.decoding.initial_length > 0) spec.draft.clear();
  if (dice.Flip()) spec.suffix = {3, 4, 5};
}

SequenceSpec RandomSpec(const ModelSpec& model, Policy policy, Dice& dice) {
  SequenceSpec spec;
  spec.grid = model.grid;
  spec.shift = model.shift;
  spec.mask_id = kMask;
  spec.positions_max = model.positions_max;
  for (int32_t i = dice.Roll(1, 20); i > 0; --i) spec.prompt.push_back(dice.Roll(0, 19));
  spec.tokens_max = dice.Roll(1, 40);
  if (dice.Flip()) spec.stop_ids = model.stop_ids;
  spec.sampling.temperature = dice.Flip() ? 0.0f : 0.8f;
  spec.sampling.seed = dice.seed;
  if (dice.Roll(0, 3) == 0) spec.frequency_penalty = 0.5f;
  if (dice.Roll(0, 3) == 0) spec.tops = 2;
  DecodingParams params;
  params.policy = policy;
  params.finish_blocks = dice.Flip();
  if (model.grid == BlockGrid::kAfterPrompt && dice.Flip()) params.block_length = dice.Roll(4, 16);
  if (policy == Policy::kVariableLength) params.initial_length = dice.Roll(1, spec.tokens_max);
  if (policy == Policy::kVariableLength) params.eos_window = 8;
  if (policy == Policy::kRemdm) params.remasking_schedule = static_cast<RemaskingSchedule>(dice.Roll(0, 3));
  if (policy == Policy::kRemdm) params.steps = dice.Roll(40, 90);
  if (policy == Policy::kTokenEdit || policy == Policy::kInsertDelete) params.post_steps_max = dice.Roll(0, 6);
  if (MayCache(policy) && model.grid == BlockGrid::kAfterPrompt && dice.Flip()) params.cache = Cache::kDual;
  const absl::StatusOr<DecodingRule> rule = ResolveDecoding(model, params, spec.tokens_max);
  EXPECT_TRUE(rule.ok()) << rule.status();
  spec.decoding = *rule;
  if (model.grid == BlockGrid::kAfterPrompt && dice.Roll(0, 2) == 0) {
    Infill(dice, spec);
    if (!CheckInfill(spec).ok()) spec.fixed = spec.draft = spec.suffix = {};
  }
  return spec;
}

/// Steps a sequence as an engine would.
class Runner {
 public:
  Runner(Sequence sequence, const FakeModel& model) : sequence_(std::move(sequence)), model_(model) {}

  StepOutcome Step() {
    while (true) {
      const Segment segment = sequence_.Next(1000);
      if (segment.denoise) return Denoise(segment);
      sequence_.ApplyPrefill(segment);
    }
  }
  Sequence& sequence() { return sequence_; }

 private:
  StepOutcome Denoise(const Segment& segment) {
    std::vector<RowChoice> choices;
    std::vector<TopLogit> tops;
    std::vector<TokenId> inputs;
    for (int32_t p = 0; p < static_cast<int32_t>(sequence_.canvas().size()); ++p)
      inputs.push_back(sequence_.InputAt(p));
    if (sequence_.block_forwards() == 0) history_.clear();
    SamplingRule sampling = sequence_.rule().sampling;
    for (const RowAsk& ask : sequence_.asked()) {
      std::vector<float> logits = model_.Logits(inputs, ask.position, ask.shadow);
      std::vector<TokenBias> biases;
      sequence_.AppendBiases(ask, biases);
      for (const TokenBias& bias : biases) logits[static_cast<size_t>(bias.id)] += bias.bias;
      choices.push_back(
          ChoiceOf(logits, ask.asked_id, history_[ask.position], sampling, sequence_.PlaceOf(ask.position)));
      const std::vector<TopLogit> best = TopsOf(logits);
      tops.insert(tops.end(), best.begin(), best.end());
      history_[ask.position] = logits;
    }
    if (!sequence_.wants_tops()) tops.clear();
    return sequence_.ApplyDenoise(segment, choices, tops);
  }

  Sequence sequence_;
  const FakeModel model_;
  std::map<int32_t, std::vector<float>> history_;
};

/// What a coordinator knows of a sequence after a step.
Resumption StateOf(const Sequence& sequence) {
  Resumption state;
  state.forwards = sequence.forwards();
  state.final_before = sequence.final_before();
  state.block_forwards = sequence.block_forwards();
  state.canvas_length = static_cast<int32_t>(sequence.grown_length());
  size_t end = sequence.canvas().size() - sequence.spec().suffix.size();
  if (sequence.stateful() && sequence.block_forwards() > 0) {
    state.forwards -= sequence.block_forwards();
    state.block_forwards = 0;
    end = static_cast<size_t>(sequence.final_before());
  }
  for (size_t p = sequence.spec().prompt.size(); p < end; ++p) {
    state.tokens.push_back(sequence.canvas()[p] == kMask ? -1 : sequence.canvas()[p]);
  }
  return state;
}

struct Case {
  ModelSpec model;
  Policy policy;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const ModelSpec& model : Families()) {
    for (const Policy policy : AllowedPolicies(model)) cases.push_back({model, policy});
  }
  return cases;
}

class EveryPolicyTest : public testing::TestWithParam<Case> {
 protected:
  FakeModel NetworkFor(Dice& dice) const {
    FakeModel model = {dice.seed + 1, 1.0f + static_cast<float>(dice.Roll(0, 4)), static_cast<float>(dice.Roll(0, 3))};
    if (dice.Roll(0, 3) == 0) model.eos_bias = 2.0f;
    if (GetParam().policy == Policy::kInsertDelete) model.control_bias = 2.0f;
    return model;
  }
};

TEST_P(EveryPolicyTest, ASequenceEndsWithACleanAnswerAndFinalTokensStay) {
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice = {seed};
    const SequenceSpec spec = RandomSpec(GetParam().model, GetParam().policy, dice);
    Runner runner(Sequence(spec), NetworkFor(dice));
    const Sequence& sequence = runner.sequence();
    std::vector<TokenId> final_tokens;
    StepOutcome outcome;
    for (int32_t step = 0; outcome.end == SequenceEndReason::kNone; ++step) {
      ASSERT_LT(step, 5000);
      outcome = runner.Step();
      ASSERT_GE(sequence.final_before(), static_cast<int32_t>(final_tokens.size()));
      for (size_t p = 0; p < final_tokens.size(); ++p) ASSERT_EQ(sequence.canvas()[p], final_tokens[p]);
      final_tokens.assign(sequence.canvas().begin(), sequence.canvas().begin() + sequence.final_before());
    }
    EXPECT_TRUE(outcome.end == SequenceEndReason::kStop || outcome.end == SequenceEndReason::kLength)
        << static_cast<int>(outcome.end);
    EXPECT_EQ(std::count(final_tokens.begin(), final_tokens.end(), kMask), 0);
    EXPECT_LE(sequence.final_before(), static_cast<int32_t>(spec.prompt.size()) + spec.tokens_max);
    for (size_t i = 0; i < spec.fixed.size() && spec.prompt.size() + i < final_tokens.size(); ++i) {
      EXPECT_TRUE(spec.fixed[i] < 0 || final_tokens[spec.prompt.size() + i] == spec.fixed[i]);
    }
  }
}

// Cut off after any step, it goes on elsewhere with the same tokens.
TEST_P(EveryPolicyTest, AResumedSequenceGoesOnAsIfNothingHadHappened) {
  int32_t cuts = 0;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice = {seed};
    const SequenceSpec spec = RandomSpec(GetParam().model, GetParam().policy, dice);
    const FakeModel model = NetworkFor(dice);
    Runner undisturbed(Sequence(spec), model);
    std::vector<Resumption> states;
    while (undisturbed.Step().end == SequenceEndReason::kNone) states.push_back(StateOf(undisturbed.sequence()));
    for (size_t i = 0; i < states.size(); i += static_cast<size_t>(dice.Roll(1, 6))) {
      SCOPED_TRACE(absl::StrCat("after step ", i + 1));
      SequenceSpec rest = spec;
      rest.resumption = states[i];
      const absl::Status valid = CheckResumption(rest);
      ASSERT_TRUE(valid.ok()) << valid;
      Runner moved(Sequence(rest), model);
      while (moved.Step().end == SequenceEndReason::kNone) {
      }
      const Sequence& a = undisturbed.sequence();
      const Sequence& b = moved.sequence();
      ASSERT_EQ(b.canvas(), a.canvas());
      ASSERT_EQ(b.forwards(), a.forwards());
      ASSERT_EQ(b.final_before(), a.final_before());
      ++cuts;
    }
  }
  EXPECT_GT(cuts, 5);
}

TEST_P(EveryPolicyTest, APaceNeverTakesLonger) {
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice = {seed};
    SequenceSpec spec = RandomSpec(GetParam().model, GetParam().policy, dice);
    spec.stop_ids = {};
    Runner runner(Sequence(spec), NetworkFor(dice));
    runner.sequence().set_commits_min(4);
    int32_t forwards = 0;
    StepOutcome outcome;
    for (; outcome.end == SequenceEndReason::kNone; ++forwards) outcome = runner.Step();
    EXPECT_EQ(outcome.end, SequenceEndReason::kLength);
    const int32_t positions = static_cast<int32_t>(runner.sequence().canvas().size() - spec.prompt.size());
    // One forward more a block where its first position is written apart, or its draft is looked at.
    EXPECT_LE(forwards, positions + positions / spec.decoding.block_length + 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryPolicyTest, testing::ValuesIn(Cases()), [](const auto& param) {
  return absl::StrCat(param.param.model.family, "_", NameOf(param.param.policy));
});

}  // namespace
}  // namespace quicksilver
