// Which policies a family runs, with which defaults, and what a request may say to each.
#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/decoding/decoding_fields.h"
#include "worker/decoding/decoding_rule.h"

namespace quicksilver {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ModelSpec Family(const char* name, BlockGrid grid, int32_t block, bool shift) {
  ModelSpec spec;
  spec.family = name;
  spec.grid = grid;
  spec.block_length = block;
  spec.shift = shift;
  spec.tokens = 120;
  spec.positions_max = 512;
  spec.mask_id = 99;
  spec.stop_ids = {50};
  spec.eos_id = 50;
  return spec;
}

ModelSpec Llada() { return Family("llada", BlockGrid::kAfterPrompt, 0, false); }
ModelSpec Dream() { return Family("dream", BlockGrid::kAfterPrompt, 32, true); }
ModelSpec Sdar() { return Family("sdar", BlockGrid::kAbsolute, 4, false); }
ModelSpec Llada2() { return Family("llada2", BlockGrid::kAbsolute, 32, false); }
ModelSpec FastDllm() { return Family("fast_dllm", BlockGrid::kAbsolute, 32, true); }
ModelSpec Qwen() { return Family("qwen", BlockGrid::kAbsolute, 1, true); }
ModelSpec Gemma() { return Family("diffusion_gemma", BlockGrid::kCanvas, 256, false); }

std::string Refusal(const ModelSpec& spec, const DecodingParams& choice) {
  const absl::StatusOr<DecodingRule> rule = ResolveDecoding(spec, choice, 64);
  EXPECT_FALSE(rule.ok());
  return std::string(rule.status().message());
}

TEST(AllowedPoliciesTest, FollowFromTheFamily) {
  EXPECT_THAT(AllowedPolicies(Qwen()), ElementsAre(Policy::kAutoregressive));
  EXPECT_THAT(AllowedPolicies(Gemma()), ElementsAre(Policy::kRenoise));
  EXPECT_THAT(AllowedPolicies(Dream()), Contains(Policy::kTopkMargin));
  EXPECT_THAT(AllowedPolicies(Llada()), Not(Contains(Policy::kTopkMargin)));
  EXPECT_THAT(AllowedPolicies(Llada()), Contains(Policy::kVariableLength));
  EXPECT_THAT(AllowedPolicies(FastDllm()), Contains(Policy::kSubBlock));
  EXPECT_THAT(AllowedPolicies(Llada2()), Contains(Policy::kTokenEdit));
  EXPECT_THAT(AllowedPolicies(Llada2()), Not(Contains(Policy::kInsertDelete))) << "without its control tokens";
  ModelSpec controlled = Llada2();
  controlled.delete_id = 100;
  controlled.insert_id = 101;
  EXPECT_THAT(AllowedPolicies(controlled), Contains(Policy::kInsertDelete));
  for (const ModelSpec& spec : {Llada(), Dream(), Sdar(), Llada2(), FastDllm(), Qwen(), Gemma()}) {
    const std::vector<Policy> policies = AllowedPolicies(spec);
    EXPECT_TRUE(std::is_sorted(policies.begin(), policies.end()));
    EXPECT_THAT(policies, Not(Contains(Policy::kHost)));
    for (const Policy policy : policies) {
      const absl::StatusOr<DecodingRule> rule = ResolveDecoding(spec, {.policy = policy}, 64);
      ASSERT_TRUE(rule.ok()) << spec.family << ", " << NameOf(policy) << ": " << rule.status();
      EXPECT_NE(MakeProcedure(*rule, {.grid = spec.grid, .answer_length = 64, .answer_length_max = 64}), nullptr);
    }
  }
}

TEST(AllowedPoliciesTest, AnotherPolicyIsRefusedWithThoseThereAre) {
  EXPECT_EQ(Refusal(Qwen(), {.policy = Policy::kStatic}),
            "decoding.policy (static) must be one that the family qwen can run: autoregressive");
  EXPECT_THAT(Refusal(Sdar(), {.policy = Policy::kWino, .cache = Cache::kDual}), HasSubstr("decoding.cache"));
}

TEST(PolicyDefaultsTest, AreThePublishedOnes) {
  EXPECT_EQ(ResolveDecoding(Llada2(), {}, 64)->policy, Policy::kDynamic);
  EXPECT_FLOAT_EQ(ResolveDecoding(Llada2(), {}, 64)->threshold, 0.95f);
  const DecodingRule dream = *ResolveDecoding(Dream(), {}, 64);
  EXPECT_EQ(dream.policy, Policy::kEntropy);
  EXPECT_EQ(dream.block_length, 64) << "Dream knows no blocks";
  EXPECT_EQ(dream.steps, 64);
  EXPECT_FALSE(dream.raw_confidence);
  EXPECT_EQ(ResolveDecoding(FastDllm(), {}, 64)->sub_block_length, 8);
  const DecodingRule gemma = *ResolveDecoding(Gemma(), {}, 64);
  EXPECT_EQ(gemma.steps, 48);
  EXPECT_FLOAT_EQ(gemma.threshold, 0.005f);
  EXPECT_FLOAT_EQ(gemma.entropy_bound, 0.1f);
  const DecodingRule edit = *ResolveDecoding(Llada2(), {.policy = Policy::kTokenEdit}, 64);
  EXPECT_TRUE(edit.edit);
  EXPECT_FLOAT_EQ(edit.edit_threshold, 0.9f);
  EXPECT_EQ(ResolveDecoding(Llada(), {.policy = Policy::kVariableLength}, 16)->initial_length, 16);
  EXPECT_EQ(ResolveDecoding(Llada(), {.policy = Policy::kRemdm, .steps = 1000}, 64)->steps, 1000)
      << "more steps than positions are of use to it";
}

TEST(ProfileTest, NamesSettingsThatExplicitFieldsGoBefore) {
  const DecodingRule fast = *ResolveDecoding(Llada(), {.profile = Profile::kFast}, 64);
  EXPECT_EQ(fast.policy, Policy::kThreshold);
  EXPECT_EQ(fast.cache, Cache::kDual);
  const DecodingRule exact = *ResolveDecoding(Llada(), {.profile = Profile::kFast, .cache = Cache::kNone}, 64);
  EXPECT_EQ(exact.cache, Cache::kNone);
  EXPECT_EQ(ResolveDecoding(Llada(), {.profile = Profile::kQuality}, 64)->policy, Policy::kStatic);
  const DecodingRule other = *ResolveDecoding(Llada(), {.policy = Policy::kCredit, .profile = Profile::kFast}, 64);
  EXPECT_EQ(other.cache, Cache::kNone) << "settings of another policy";
  const DecodingRule speed = *ResolveDecoding(Llada2(), {.policy = Policy::kTokenEdit, .profile = Profile::kFast}, 64);
  EXPECT_FLOAT_EQ(speed.threshold, 0.5f);
  EXPECT_FLOAT_EQ(speed.edit_threshold, 0.0f) << "every change, which is not the same as no editing";
  EXPECT_TRUE(speed.edit);
}

TEST(CheckFieldsTest, AFieldThatThePolicyDoesNotUseIsRefused) {
  EXPECT_EQ(Refusal(Llada(), {.policy = Policy::kStatic, .threshold = 0.5f}),
            "decoding.threshold must be unset: the policy static does not use it");
  EXPECT_THAT(Refusal(Llada(), {.policy = Policy::kThreshold, .steps = 8}), HasSubstr("decoding.steps must be unset"));
  EXPECT_THAT(Refusal(Llada(), {.policy = Policy::kCredit, .kl_threshold = 1.0f}), HasSubstr("decoding.kl_threshold"));
  EXPECT_THAT(Refusal(Llada2(), {.policy = Policy::kTokenEdit, .edit = false, .edit_threshold = 0.5f}),
              HasSubstr("decoding.edit_threshold"));
  EXPECT_THAT(Refusal(Llada(), {.cache = Cache::kDual, .vicinity_before = 4}), HasSubstr("decoding.vicinity_before"));
  EXPECT_THAT(Refusal(Llada(), {.policy = Policy::kMultiBlock, .cache = Cache::kDual}), HasSubstr("decoding.cache"));
  EXPECT_THAT(Refusal(Llada(), {.policy = Policy::kWino, .guidance_scale = 1.0f}), HasSubstr("guidance_scale"));
  EXPECT_THAT(Refusal(Dream(), {.guidance_scale = 1.0f}), HasSubstr("guidance_scale"));
}

TEST(CheckFieldsTest, ThresholdsOfNegativeEntropiesHaveNoDefaultAndAreAtMostZero) {
  const auto with = [](Policy policy, std::optional<float> threshold, std::optional<float> low = {}) {
    return DecodingParams{
        .policy = policy, .threshold = threshold, .confidence = Measure::kEntropy, .low_threshold = low};
  };
  for (const Policy policy : {Policy::kDynamic, Policy::kThreshold, Policy::kHierarchical}) {
    EXPECT_THAT(Refusal(Llada(), with(policy, {})), HasSubstr("decoding.threshold must be set, in [-20, 0] nats"));
    EXPECT_THAT(Refusal(Llada(), with(policy, 0.5f, -1.0f)), HasSubstr("decoding."));
  }
  EXPECT_THAT(Refusal(Llada(), {.profile = Profile::kFast, .confidence = Measure::kEntropy}),
              HasSubstr("decoding.threshold must be set"));
  EXPECT_THAT(Refusal(Llada(), with(Policy::kThreshold, 0.5f)), HasSubstr("(0.5) must be in [-20, 0]"));
  EXPECT_THAT(Refusal(Llada(), with(Policy::kHierarchical, -1.0f)), HasSubstr("decoding.low_threshold must be set"));
  EXPECT_EQ(ResolveDecoding(Llada(), with(Policy::kThreshold, -0.5f), 64)->threshold, -0.5f);
  EXPECT_TRUE(ResolveDecoding(Llada(), with(Policy::kStatic, {}), 64).ok()) << "it has no threshold";
}

TEST(CheckFieldsTest, TheConfidenceScheduleNeedsNoEta) {
  EXPECT_EQ(
      Refusal(Llada(),
              {.policy = Policy::kRemdm, .remasking_schedule = RemaskingSchedule::kConfidence, .remasking_eta = 0.1f}),
      "decoding.remasking_eta must be unset with the remasking_schedule confidence, which does not use it");
}

TEST(PolicyDefaultsTest, TheEndOfAnAnswerThatGrowsIsTheModelsOwn) {
  ModelSpec spec = Llada();
  spec.stop_ids = {40, 50};
  EXPECT_EQ(ResolveDecoding(spec, {.policy = Policy::kVariableLength}, 64)->eos_id, 50);
}

TEST(CheckFieldsTest, BoundsAreThoseOfTheContract) {
  EXPECT_EQ(Refusal(Llada(), {.policy = Policy::kFactor, .factor = 101.0f}),
            "decoding.factor (101) must be in [0, 100]");
  EXPECT_THAT(Refusal(Llada(), {.policy = Policy::kMultiBlock, .threshold = 21.0f}), HasSubstr("in [0, 20]"));
  EXPECT_THAT(Refusal(Llada2(), {.policy = Policy::kTokenEdit, .post_steps_max = 257}), HasSubstr("in [0, 256]"));
  EXPECT_THAT(Refusal(Sdar(), {.commits_min = 5}), HasSubstr("decoding.commits_min (5) must be in [1, 4]"));
  EXPECT_THAT(Refusal(FastDllm(), {.sub_block_length = 5}), HasSubstr("a divisor of the block length, 32"));
  EXPECT_THAT(Refusal(Llada(), {.policy = Policy::kVariableLength, .initial_length = 65}), HasSubstr("in [1, 64]"));
  EXPECT_THAT(Refusal(Gemma(), {.temperature_min = 0.9f}), HasSubstr("at most temperature_max"));
  EXPECT_THAT(Refusal(Dream(), {.policy = Policy::kThreshold, .cache = Cache::kVicinity}), HasSubstr("vicinity"));
}

}  // namespace
}  // namespace quicksilver
