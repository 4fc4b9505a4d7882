#include "worker/decoding/decoding_rule.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

ModelSpec BlockCausal() {
  ModelSpec spec;
  spec.family = "sdar";
  spec.grid = BlockGrid::kAbsolute;
  spec.block_length = 8;
  spec.positions_max = 512;
  spec.stop_ids = {5, 7};
  spec.eos_id = 7;
  return spec;
}

ModelSpec Bidirectional() {
  ModelSpec spec = BlockCausal();
  spec.family = "llada";
  spec.grid = BlockGrid::kAfterPrompt;
  spec.block_length = 32;
  return spec;
}

std::string Refusal(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max = 64) {
  const absl::StatusOr<DecodingRule> rule = ResolveDecoding(spec, choice, tokens_max);
  EXPECT_EQ(rule.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(rule.status().message());
}

TEST(ResolveDecodingTest, BlockCausalDefaultsToTheDynamicRuleAtOneStepAPosition) {
  const DecodingRule rule = *ResolveDecoding(BlockCausal(), {}, 100);
  EXPECT_EQ(rule.policy, Policy::kDynamic);
  EXPECT_EQ(rule.threshold, 0.9f);
  EXPECT_EQ(rule.block_length, 8);
  EXPECT_EQ(rule.steps, 8);
  EXPECT_FALSE(rule.raw_confidence);
}

TEST(ResolveDecodingTest, BidirectionalDefaultsToOneTokenAStepInEvenBlocks) {
  const DecodingRule rule = *ResolveDecoding(Bidirectional(), {}, 40);
  EXPECT_EQ(rule.policy, Policy::kStatic);
  EXPECT_EQ(rule.remasking, Remasking::kLowConfidence);
  EXPECT_EQ(rule.block_length, 20) << "two blocks of 20 rather than 32 + 8 wasted 24";
  EXPECT_EQ(rule.steps, 40);
  EXPECT_TRUE(rule.raw_confidence);
  EXPECT_EQ(ResolveDecoding(Bidirectional(), {}, 3)->block_length, 3);
}

TEST(ResolveDecodingTest, KeepsTheReferenceScheduleWhenTheLengthsDivide) {
  const DecodingRule rule = *ResolveDecoding(Bidirectional(), {.block_length = 8, .steps = 16}, 32);
  EXPECT_EQ(rule.block_length, 8);
  EXPECT_EQ(rule.steps, 16);
}

TEST(ResolveDecodingTest, RefusalsNameFieldValueAndBound) {
  EXPECT_EQ(Refusal(BlockCausal(), {.steps = 9}), "decoding.steps (9) must be in [1, 8], the model's block length");
  EXPECT_EQ(Refusal(BlockCausal(), {.block_length = 4}),
            "decoding.block_length (4) must be 8: a block-causal model fixes it");
  EXPECT_EQ(Refusal(BlockCausal(), {.threshold = 1.5f}), "decoding.threshold (1.5) must be in [0, 1]");
  EXPECT_THAT(Refusal(BlockCausal(), {.threshold = NAN}), HasSubstr("decoding.threshold"));
  EXPECT_THAT(Refusal(BlockCausal(), {.guidance_scale = 1.0f}), HasSubstr("decoding.guidance_scale (1) must be 0"));
  EXPECT_THAT(Refusal(BlockCausal(), {.suppress_eos = true}), HasSubstr("decoding.suppress_eos"));
  EXPECT_THAT(Refusal(BlockCausal(), {.distrust_eos = true}), HasSubstr("decoding.distrust_eos"));
  EXPECT_THAT(Refusal(BlockCausal(), {.remasking = Remasking::kRandom}), HasSubstr("decoding.remasking (random)"));
  EXPECT_THAT(Refusal(Bidirectional(), {.guidance_scale = -1.0f}), HasSubstr("decoding.guidance_scale (-1)"));
  EXPECT_THAT(Refusal(Bidirectional(), {.block_length = 0}),
              HasSubstr("decoding.block_length (0) must be in [1, 512]"));
  EXPECT_EQ(Refusal(Bidirectional(), {.block_length = 8, .steps = 7}),
            "decoding.steps (7) must be at least 8, the number of blocks");
  EXPECT_THAT(Refusal(Bidirectional(), {.steps = 0}), HasSubstr("decoding.steps (0)"));
}

TEST(ResolveDecodingTest, SuppressedTokenIsTheModelsEndOfText) {
  EXPECT_EQ(ResolveDecoding(Bidirectional(), {.suppress_eos = true}, 8)->suppressed_id, 7)
      << "the model's own end, not the smallest stop id";
  EXPECT_EQ(ResolveDecoding(Bidirectional(), {}, 8)->suppressed_id, -1);
}

TEST(CheckSamplingTest, RefusesWhatIsOutOfBounds) {
  EXPECT_TRUE(CheckSampling({}).ok());
  EXPECT_TRUE(CheckSampling({.temperature = 2.0f, .top_p = 0.1f, .top_k = 256, .choice = 65535}).ok());
  EXPECT_EQ(CheckSampling({.temperature = 2.5f}).message(), "sampling.temperature (2.5) must be in [0, 2]");
  EXPECT_FALSE(CheckSampling({.temperature = -0.1f}).ok());
  EXPECT_FALSE(CheckSampling({.temperature = NAN}).ok());
  EXPECT_EQ(CheckSampling({.top_p = 0.0f}).message(), "sampling.top_p (0) must be in (0, 1]");
  EXPECT_FALSE(CheckSampling({.top_p = 1.1f}).ok());
  EXPECT_EQ(CheckSampling({.top_k = 257}).message(), "sampling.top_k (257) must be in [0, 256]");
  EXPECT_FALSE(CheckSampling({.choice = 65536}).ok());
}

TEST(CanvasLengthTest, RoundsTheAnswerUpToWholeBlocks) {
  EXPECT_EQ(CanvasLength(BlockGrid::kAbsolute, 10, 24, 4, 512), 36);
  EXPECT_EQ(CanvasLength(BlockGrid::kAbsolute, 8, 24, 8, 512), 32);
  EXPECT_EQ(CanvasLength(BlockGrid::kAfterPrompt, 10, 24, 8, 512), 34);
  EXPECT_EQ(CanvasLength(BlockGrid::kAfterPrompt, 10, 25, 8, 512), 42);
}

TEST(CanvasLengthTest, NeverPassesTheModelsPositions) {
  EXPECT_EQ(CanvasLength(BlockGrid::kAfterPrompt, 10, 25, 8, 40), 40);
  EXPECT_EQ(CanvasLength(BlockGrid::kAbsolute, 10, 25, 8, 35), 35);
}

}  // namespace
}  // namespace quicksilver
