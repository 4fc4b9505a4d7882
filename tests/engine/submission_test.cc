#include "worker/engine/submission.h"

#include <cmath>
#include <functional>
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
  const absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(Model(), submit, false);
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
  submit.mutable_decoding()->set_threshold(0.25f);
  submit.mutable_decoding()->set_remasking(v1::REMASKING_RANDOM);
  const SequenceSpec spec = *MakeSequenceSpec(Model(), submit, true);
  EXPECT_THAT(spec.prompt, ElementsAre(5));
  EXPECT_THAT(spec.stop_ids, ElementsAre(50, 60));
  EXPECT_THAT(spec.eos_ids, ElementsAre(50));
  EXPECT_EQ(spec.tokens_max, 10);
  EXPECT_EQ(spec.sampling.temperature, 0.5f);
  EXPECT_EQ(spec.sampling.top_p, 0.9f);
  EXPECT_EQ(spec.sampling.top_k, 40);
  EXPECT_EQ(spec.sampling.seed, ~uint64_t{0});
  EXPECT_EQ(spec.sampling.choice, 3u);
  EXPECT_EQ(spec.decoding.policy, Policy::kStatic);
  EXPECT_EQ(spec.decoding.steps, 4);
  EXPECT_EQ(spec.decoding.threshold, 0.25f);
  EXPECT_EQ(spec.decoding.remasking, Remasking::kRandom);
  EXPECT_TRUE(spec.finish_blocks);
}

TEST(MakeSequenceSpecTest, WithoutSamplingItIsGreedy) {
  v1::Submit submit = Valid();
  submit.clear_sampling();
  const SequenceSpec spec = *MakeSequenceSpec(Model(), submit, false);
  EXPECT_EQ(spec.sampling.temperature, 0.0f);
  EXPECT_EQ(spec.sampling.top_p, 1.0f);
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

}  // namespace
}  // namespace quicksilver
