// DiffusionGemma in whole groups: what engines answer is what its definition says.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"
#include "tests/support/gemma_decoding.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_gemma.h"

namespace quicksilver {
namespace {

constexpr int32_t kCanvas = 8;

std::vector<TokenId> SomeIds(int32_t count, int32_t salt) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = (i * 17 + i * i * 5 + salt * 11 + 3) % 60;
  return ids;
}

v1::Submit Submit(uint64_t id, const std::vector<TokenId>& prompt, const Renoise::Settings& settings, int32_t blocks) {
  v1::Submit submit = MakeSubmit(id, prompt, static_cast<uint32_t>(blocks * kCanvas));
  submit.mutable_sampling()->set_seed(settings.sampling.seed);
  v1::Decoding& decoding = *submit.mutable_decoding();
  decoding.Clear();
  decoding.set_policy(v1::POLICY_RENOISE);
  decoding.set_steps(static_cast<uint32_t>(settings.steps));
  decoding.set_entropy_bound(settings.entropy_bound);
  decoding.set_temperature_min(settings.temperature_min);
  decoding.set_temperature_max(settings.temperature_max);
  decoding.set_stability_steps(static_cast<uint32_t>(settings.stability_steps));
  decoding.set_threshold(settings.confidence_threshold);
  decoding.set_finish_blocks(true);
  return submit;
}

class GemmaEngineTest : public testing::Test {
 protected:
  void SetUp() override { model_.Write(directory_.path(), "model.decoder."); }

  std::unique_ptr<EngineGroup> Start(int ranks, int32_t step_rows_max = 64, int32_t pages = 64) {
    EngineGroup::Options options;
    options.directory = directory_.path();
    options.ranks = ranks;
    options.pages = pages;
    options.page_size = 4;
    options.engine.step_rows_max = step_rows_max;
    options.engine.sequences_max = 4;
    options.make_ops = [] { return MakeCpuOps(DType::kF32, CpuOpsOptions()); };
    absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
    EXPECT_TRUE(group.ok()) << group.status();
    return *std::move(group);
  }

  /// Without what a stop token ends; 1 is the model's.
  static std::vector<TokenId> UpToStop(const std::vector<TokenId>& tokens) {
    return {tokens.begin(), std::find(tokens.begin(), tokens.end(), 1)};
  }

  TinyGemma model_{7};
  TempDirectory directory_;
};

TEST_F(GemmaEngineTest, AnswersAreThoseOfTheDefinitionAtAnyTensorParallelSize) {
  const std::vector<TokenId> prompt = SomeIds(10, 6);
  for (const int ranks : {1, 2, 4}) {
    const auto group = Start(ranks);
    for (const Renoise::Settings& settings : {NoisyRenoise(), SettlingRenoise()}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", settings.steps, " steps"));
      const DecodedAnswer expected = DecodeByDefinition(model_, prompt, settings, 2);
      const auto transcripts = group->RunAll({Submit(1 + settings.sampling.seed, prompt, settings, 2)});
      ASSERT_TRUE(transcripts.ok()) << transcripts.status();
      EXPECT_EQ((*transcripts)[0].answer, UpToStop(expected.tokens));
      EXPECT_EQ((*transcripts)[0].end.forwards(), expected.steps.size());
    }
  }
}

// Prompts in chunks, prefixes in common, few pages, several sequences a step: none of it shows.
TEST_F(GemmaEngineTest, AnswersHaveTheSameBytesAloneAndBesideOthers) {
  std::vector<v1::Submit> submits;
  for (uint64_t i = 0; i < 6; ++i) {
    Renoise::Settings settings = i % 2 == 0 ? NoisyRenoise() : SettlingRenoise();
    settings.sampling.seed = i + 1;
    std::vector<TokenId> prompt = SomeIds(9, i < 3 ? 1 : 2);
    for (uint64_t more = 0; more < 3 * i; ++more) prompt.push_back(static_cast<TokenId>((more * 7 + i) % 60));
    submits.push_back(Submit(i + 1, prompt, settings, 1 + static_cast<int32_t>(i % 3)));
    submits.back().set_cache_salt("shared");
  }
  std::vector<std::string> expected;
  for (const v1::Submit& submit : submits) {
    const auto transcripts = Start(1)->RunAll({submit});
    ASSERT_TRUE(transcripts.ok()) << transcripts.status();
    expected.push_back(Bytes((*transcripts)[0]));
  }
  for (const auto& [rows, pages] : {std::pair{64, 64}, {19, 64}, {64, 14}}) {
    SCOPED_TRACE(absl::StrCat(rows, " rows, ", pages, " pages"));
    const auto group = Start(1, rows, pages);
    const auto transcripts = group->RunAll(submits);
    ASSERT_TRUE(transcripts.ok()) << transcripts.status();
    for (size_t i = 0; i < submits.size(); ++i) EXPECT_EQ(Bytes((*transcripts)[i]), expected[i]) << "sequence " << i;
  }
}

TEST_F(GemmaEngineTest, AResumedAnswerGoesOnAtItsOpenCanvas) {
  const std::vector<TokenId> prompt = SomeIds(10, 6);
  const DecodedAnswer expected = DecodeByDefinition(model_, prompt, NoisyRenoise(), 2);
  v1::Submit submit = Submit(1, prompt, NoisyRenoise(), 2);
  submit.mutable_checkpoint()->set_step(12);
  submit.mutable_checkpoint()->set_block_step(0);
  submit.mutable_checkpoint()->set_final_before(18);
  for (int32_t i = 0; i < kCanvas; ++i)
    submit.mutable_checkpoint()->add_tokens(expected.tokens[static_cast<size_t>(i)]);
  const auto transcripts = Start(2)->RunAll({submit});
  ASSERT_TRUE(transcripts.ok()) << transcripts.status();
  EXPECT_EQ((*transcripts)[0].answer, UpToStop({expected.tokens.begin() + kCanvas, expected.tokens.end()}));
}

TEST_F(GemmaEngineTest, GivenTokensStayInTheCanvas) {
  v1::Submit submit = Submit(1, SomeIds(10, 6), NoisyRenoise(), 1);
  for (const TokenId id : {-1, -1, 44, -1, 45}) submit.add_fixed_ids(id);
  const auto transcripts = Start(1)->RunAll({submit});
  ASSERT_TRUE(transcripts.ok()) << transcripts.status();
  std::vector<TokenId> written(8, -1);
  for (const v1::SequenceUpdate& update : (*transcripts)[0].updates) {
    for (const v1::Commit& commit : update.commits()) written[commit.position() - 10] = commit.token();
  }
  EXPECT_EQ(written[2], -1) << "a given token is not written";
  EXPECT_EQ(written[4], -1);
  EXPECT_GE(written[3], 0);
}

}  // namespace
}  // namespace quicksilver
