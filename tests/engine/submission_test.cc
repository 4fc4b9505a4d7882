#include "worker/engine/submission.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelSpec Model() {
  ModelSpec spec;
  spec.family = "sdar";
  spec.vocabulary = 128;
  spec.tokens = 120;
  spec.positions_max = 64;
  spec.block_length = 8;
  spec.mask_id = 99;
  spec.stop_ids = {50};
  return spec;
}

v1::Submit Valid() {
  v1::Submit submit;
  submit.set_sequence_id(1);
  submit.add_prompt_ids(5);
  submit.set_max_tokens(10);
  submit.mutable_sampling()->set_top_p(1.0f);
  return submit;
}

std::string Refusal(const std::function<void(v1::Submit&)>& change) {
  v1::Submit submit = Valid();
  change(submit);
  const absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(Model(), submit);
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(spec.status().message());
}

TEST(MakeSequenceSpecTest, ReadsEveryField) {
  v1::Submit submit = Valid();
  submit.add_stop_ids(60);
  submit.add_stop_ids(50);
  submit.add_stop_ids(60);
  submit.mutable_sampling()->set_temperature(0.5f);
  submit.mutable_sampling()->set_top_p(0.9f);
  submit.mutable_sampling()->set_top_k(40);
  submit.mutable_sampling()->set_seed(~uint64_t{0});
  submit.set_choice(3);
  submit.mutable_decoding()->set_policy(v1::POLICY_STATIC);
  submit.mutable_decoding()->set_steps(4);
  submit.mutable_decoding()->set_remasking(v1::REMASKING_RANDOM);
  submit.mutable_decoding()->set_finish_blocks(true);
  const SequenceSpec spec = *MakeSequenceSpec(Model(), submit);
  EXPECT_THAT(spec.prompt, ElementsAre(5));
  EXPECT_THAT(spec.stop_ids, ElementsAre(50, 60));
  EXPECT_THAT(spec.decoding.eos_ids, ElementsAre(50));
  EXPECT_EQ(spec.tokens_max, 10);
  EXPECT_EQ(spec.sampling.temperature, 0.5f);
  EXPECT_EQ(spec.sampling.top_p, 0.9f);
  EXPECT_EQ(spec.sampling.top_k, 40);
  EXPECT_EQ(spec.sampling.seed, ~uint64_t{0});
  EXPECT_EQ(spec.sampling.choice, 3u);
  EXPECT_EQ(spec.decoding.policy, Policy::kStatic);
  EXPECT_EQ(spec.decoding.steps, 4);
  EXPECT_EQ(spec.decoding.remasking, Remasking::kRandom);
  EXPECT_TRUE(spec.decoding.finish_blocks);
}

TEST(MakeSequenceSpecTest, WithoutSamplingItIsGreedy) {
  v1::Submit submit = Valid();
  submit.clear_sampling();
  const SequenceSpec spec = *MakeSequenceSpec(Model(), submit);
  EXPECT_EQ(spec.sampling.temperature, 0.0f);
  EXPECT_EQ(spec.sampling.top_p, 1.0f);
}

TEST(MakeSequenceSpecTest, OneIdAtLeastMustBeLeft) {
  const auto forbid = [](v1::Submit& submit, TokenId kept) {
    for (TokenId id = 0; id < 120; ++id) {
      if (id == 99 || id == kept) continue;
      v1::TokenBias& bias = *submit.mutable_sampling()->add_biases();
      bias.set_id(id);
      bias.set_bias(-std::numeric_limits<float>::infinity());
    }
  };
  EXPECT_EQ(Refusal([&](v1::Submit& s) { forbid(s, -1); }),
            "sampling.biases (119) must be such that one of 120 ids is left");
  v1::Submit submit = Valid();
  forbid(submit, 3);
  EXPECT_TRUE(MakeSequenceSpec(Model(), submit).ok());
}

TEST(MakeSequenceSpecTest, APolicyThatLooksAtTheWholeAnswerTakesNoPenalties) {
  ModelSpec model = Model();
  model.family = "llada";
  model.grid = BlockGrid::kAfterPrompt;
  model.eos_id = 2;
  v1::Submit submit = Valid();
  submit.clear_decoding();
  submit.mutable_decoding()->set_policy(v1::POLICY_VARIABLE_LENGTH);
  EXPECT_TRUE(MakeSequenceSpec(model, submit).ok()) << MakeSequenceSpec(model, submit).status();
  submit.mutable_sampling()->set_frequency_penalty(0.5f);
  EXPECT_THAT(std::string(MakeSequenceSpec(model, submit).status().message()),
              HasSubstr("with the policy variable_length"));
}

TEST(MakeSequenceSpecTest, RefusalsNameFieldValueAndBound) {
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.clear_prompt_ids(); }), "prompt_ids (0) must be at least 1 token long");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.set_max_tokens(0); }), "max_tokens (0) must be at least 1");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.set_max_tokens(64); }),
            "prompt_ids (1) and max_tokens (64) must be at most 64 positions together");
  EXPECT_THAT(Refusal([](v1::Submit& s) { s.set_max_tokens(~uint32_t{0}); }), HasSubstr("max_tokens (4294967295)"));
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.add_prompt_ids(120); }), "prompt_ids[1] (120) must be in [0, 120)");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.add_prompt_ids(-1); }), "prompt_ids[1] (-1) must be in [0, 120)");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.add_prompt_ids(99); }),
            "prompt_ids[1] (99) must be another id than the mask token's");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.add_stop_ids(500); }), "stop_ids[0] (500) must be in [0, 120)");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.mutable_sampling()->set_top_k(~uint32_t{0}); }),
            "sampling.top_k (4294967295) must be in [0, 256]");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.mutable_sampling()->set_temperature(3.0f); }),
            "sampling.temperature (3) must be in [0, 2]");
  EXPECT_THAT(Refusal([](v1::Submit& s) { s.mutable_sampling()->set_top_p(NAN); }), HasSubstr("sampling.top_p"));
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.set_choice(70000); }), "choice (70000) must be below 65536");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.mutable_decoding()->set_steps(~uint32_t{0}); }),
            "decoding.steps (4294967295) must be in [1, 8], the model's block length");
  EXPECT_THAT(Refusal([](v1::Submit& s) { s.mutable_decoding()->set_policy(static_cast<v1::Policy>(77)); }),
              HasSubstr("decoding.policy (77)"));
  EXPECT_THAT(Refusal([](v1::Submit& s) { s.mutable_decoding()->set_remasking(static_cast<v1::Remasking>(9)); }),
              HasSubstr("decoding.remasking (9)"));
  EXPECT_THAT(Refusal([](v1::Submit& s) {
                for (int i = 0; i <= kStopIdsMax; ++i) s.add_stop_ids(1);
              }),
              HasSubstr("stop_ids (257) must be at most 256"));
}

// LLaDA2.2's control tokens.
TEST(MakeSequenceSpecTest, TokensThatDeleteAndInsertAreLeftToThePolicyThatKnowsThem) {
  ModelSpec model = Model();
  model.family = "llada2";
  model.delete_id = 3;
  model.insert_id = 5;
  v1::Submit submit;
  submit.add_prompt_ids(1);
  submit.set_max_tokens(4);
  for (const int32_t id : {2, 5}) {
    v1::TokenBias& bias = *submit.mutable_sampling()->add_biases();
    bias.set_id(id);
    bias.set_bias(1.0f);
  }
  submit.mutable_sampling()->set_top_p(1.0f);
  submit.mutable_decoding()->set_policy(v1::POLICY_DYNAMIC);
  const absl::StatusOr<SequenceSpec> plain = MakeSequenceSpec(model, submit);
  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_EQ(plain->biases.size(), 3u);
  EXPECT_EQ(plain->biases[0].bias, 1.0f);
  EXPECT_EQ(plain->biases[1].id, 3);
  EXPECT_EQ(plain->biases[1].bias, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(plain->biases[2].id, 5);
  EXPECT_EQ(plain->biases[2].bias, -std::numeric_limits<float>::infinity());
  submit.mutable_decoding()->set_policy(v1::POLICY_INSERT_DELETE);
  const absl::StatusOr<SequenceSpec> editing = MakeSequenceSpec(model, submit);
  ASSERT_TRUE(editing.ok()) << editing.status();
  EXPECT_EQ(editing->biases.size(), 2u);
}

TEST(MakeSequenceSpecTest, TermsAreBounded) {
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.set_tenant(std::string(129, 't')); }),
            "tenant (129) must be at most 128 bytes");
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.set_cache_salt(std::string(65, 's')); }),
            "cache_salt (65) must be at most 64 bytes");
  EXPECT_THAT(Refusal([](v1::Submit& s) { s.set_deadline_micros(~uint64_t{0}); }),
              HasSubstr("deadline_micros (18446744073709551615)"));
  EXPECT_THAT(Refusal([](v1::Submit& s) { s.set_target_micros(~uint64_t{0}); }), HasSubstr("target_micros"));
  EXPECT_EQ(Refusal([](v1::Submit& s) { s.set_priority(static_cast<v1::Priority>(9)); }),
            "priority (9) must be a known priority");
}

/// Blocks of 8 from position 0, a prompt of 1: positions 1 to 10 are wanted, the canvas ends at 16.
v1::Submit Resumed(uint32_t step, uint32_t block_step, uint32_t final_before, const std::vector<int32_t>& tokens) {
  v1::Submit submit = Valid();
  v1::Checkpoint& checkpoint = *submit.mutable_checkpoint();
  checkpoint.set_step(step);
  checkpoint.set_block_step(block_step);
  checkpoint.set_final_before(final_before);
  checkpoint.mutable_tokens()->Add(tokens.begin(), tokens.end());
  return submit;
}

TEST(MakeSequenceSpecTest, ACheckpointIsWhereTheSequenceGoesOn) {
  const SequenceSpec spec = *MakeSequenceSpec(Model(), Resumed(5, 1, 8, {1, 2, 3, 4, 5, 6, 7, -1, 9, -1}));
  const Sequence sequence(spec);
  EXPECT_EQ(sequence.forwards(), 5);
  EXPECT_EQ(sequence.block_forwards(), 1);
  EXPECT_EQ(sequence.final_before(), 8);
  EXPECT_THAT(sequence.canvas(), ElementsAre(5, 1, 2, 3, 4, 5, 6, 7, 99, 9, 99, 99, 99, 99, 99, 99));
  std::vector<int32_t> asked;
  for (const RowAsk& ask : sequence.asked()) asked.push_back(ask.position);
  EXPECT_THAT(asked, ElementsAre(8, 10, 11, 12, 13, 14, 15));
  EXPECT_EQ(sequence.prefill_rows(), 8);
}

TEST(MakeSequenceSpecTest, RefusalsOfCheckpointsNameFieldValueAndBound) {
  const auto refusal = [](const v1::Submit& submit) {
    v1::Submit stopping = submit;
    stopping.add_stop_ids(50);
    const absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(Model(), stopping);
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(spec.status().message());
  };
  const std::vector<int32_t> block(7, 3);
  EXPECT_EQ(refusal(Resumed(0, 0, 1, {120})),
            "checkpoint.tokens[0] (120) must be in [0, 120) and not the mask token's (99), or -1 for a mask");
  EXPECT_THAT(refusal(Resumed(0, 0, 1, {99})), HasSubstr("checkpoint.tokens[0] (99)"));
  EXPECT_THAT(refusal(Resumed(0, 0, 1, {-2})), HasSubstr("checkpoint.tokens[0] (-2)"));
  EXPECT_THAT(refusal(Resumed(0, 0, 1, std::vector<int32_t>(65, -1))), HasSubstr("checkpoint.tokens (65)"));
  EXPECT_EQ(refusal(Resumed(7, 0, 0, block)),
            "checkpoint.final_before (0) must be in [1, 11): from the prompt's end to the last wanted token");
  EXPECT_THAT(refusal(Resumed(7, 0, ~uint32_t{0}, block)), HasSubstr("checkpoint.final_before (2147483647)"));
  EXPECT_THAT(refusal(Resumed(7, 0, 11, block)), HasSubstr("checkpoint.final_before (11)")) << "has ended";
  EXPECT_EQ(refusal(Resumed(7, 0, 7, block)),
            "checkpoint.final_before (7) must be the end of the prompt (1) or of a block: 0 plus a multiple of 8");
  EXPECT_EQ(refusal(Resumed(7, 0, 8, {3, 3})), "checkpoint.tokens (2) must be at least 7 long: the final ones");
  EXPECT_EQ(refusal(Resumed(7, 0, 8, {3, 3, -1, 3, 3, 3, 3})),
            "checkpoint.tokens[2] (-1) must be a token: its position is final");
  EXPECT_EQ(refusal(Resumed(1, 1, 1, {3, -1, -1, -1, -1, -1, -1, 3})),
            "checkpoint.tokens[7] (3) must be -1: its block is not open before 8");
  EXPECT_EQ(refusal(Resumed(7, 0, 1, block)),
            "checkpoint.final_before (1) must be at least 8: no position below that is masked");
  EXPECT_EQ(refusal(Resumed(7, 0, 8, {3, 3, 3, 50, 3, 3, 3})),
            "checkpoint.tokens[3] (50) must be no stop token: the sequence has ended");
  EXPECT_THAT(refusal(Resumed(2, 2, 1, {3, 50})), HasSubstr("checkpoint.tokens[1] (50)"));
  EXPECT_EQ(refusal(Resumed(3, 3, 1, {3, -1, 50})),
            "checkpoint.block_step (3) must be in [1, 2]: the open block has so many tokens");
  EXPECT_THAT(refusal(Resumed(0, 0, 1, {3})), HasSubstr("checkpoint.block_step (0)"));
  EXPECT_EQ(refusal(Resumed(8, 0, 8, block)),
            "checkpoint.step (8) must be in [1, 7]: block_step and the forwards of 7 final tokens");
  EXPECT_THAT(refusal(Resumed(0, 0, 8, block)), HasSubstr("checkpoint.step (0)"));
  EXPECT_THAT(refusal(Resumed(1, 0, 1, {})), HasSubstr("checkpoint.step (1)"));
}

}  // namespace
}  // namespace quicksilver
