// Whole experts by rank: the recorded checkpoints of families with experts, shared in the other way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"
#include "tests/support/golden.h"
#include "tests/support/golden_rows.h"

namespace quicksilver {
namespace {

std::string CheckpointOf(const char* family) {
  const absl::StatusOr<Golden> golden = Golden::Open();
  CHECK(golden.ok());
  return *golden->CheckpointDirectory(family, "bf16");
}

std::unique_ptr<Ops> FastOps() { return MakeCpuOps(DType::kF32, CpuOpsOptions()); }

/// Family, ranks.
class ExpertParallelTest : public testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(ExpertParallelTest, LogitsEqualTheRecordedOnes) {
  const auto [family, ranks] = GetParam();
  const auto forwards = Golden::Open()->Forwards(family);
  ASSERT_TRUE(forwards.ok()) << forwards.status();
  const int32_t block = forwards->front().block_length;
  const auto group = ModelGroup::Load(CheckpointOf(family), ranks, FastOps, ModelGroup::Sizes(),
                                      {.block_length = block, .mask_id = kGoldenMaskId, .expert_parallel = true});
  ASSERT_TRUE(group.ok()) << group.status();
  for (const GoldenForward& forward : *forwards) {
    const HostRows logits = (*group)->Logits({{forward.ids, 0, PagesFor(forward.ids.size(), 8)}}, forward.block_length);
    EXPECT_LE(MaxError(logits, forward.logits), kGoldenLogitErrorMax) << forward.name;
  }
}

/// Every commit of a few greedy decodings, with the step that made it.
std::string Decoded(const char* family, int ranks, bool expert_parallel) {
  const EngineGroup::Options options = {.directory = CheckpointOf(family),
                                        .ranks = ranks,
                                        .block_length = 8,
                                        .mask_id = kGoldenMaskId,
                                        .expert_parallel = expert_parallel,
                                        .make_ops = FastOps};
  const auto group = EngineGroup::Start(options);
  CHECK(group.ok());
  std::vector<v1::Submit> submits(3);
  for (size_t i = 0; i < submits.size(); ++i) {
    submits[i].set_sequence_id(i + 1);
    for (size_t j = 0; j < 5 + 4 * i; ++j) submits[i].add_prompt_ids(static_cast<int32_t>((17 * i + 31 * j + 3) % 240));
    submits[i].set_max_tokens(24);
    submits[i].set_provisional(true);
  }
  const auto transcripts = (*group)->RunAll(submits);
  CHECK(transcripts.ok());
  std::string text;
  for (const Transcript& transcript : *transcripts) {
    for (const v1::SequenceUpdate& update : transcript.updates) {
      absl::StrAppend(&text, "\nstep ", update.step());
      for (const v1::Commit& commit : update.commits())
        absl::StrAppend(&text, " ", commit.position(), "=", commit.token());
    }
  }
  return text;
}

TEST_P(ExpertParallelTest, DecodingsAreThoseOfTensorParallelRanks) {
  const auto [family, ranks] = GetParam();
  const std::string columns = Decoded(family, ranks, /*expert_parallel=*/false);
  EXPECT_GT(columns.size(), 300u);
  EXPECT_EQ(Decoded(family, ranks, /*expert_parallel=*/true), columns);
}

INSTANTIATE_TEST_SUITE_P(Families, ExpertParallelTest,
                         testing::Combine(testing::Values("llada2", "lladamoe"), testing::Values(1, 2, 4)),
                         [](const testing::TestParamInfo<std::tuple<const char*, int>>& of) {
                           return absl::StrCat(std::get<0>(of.param), "_", std::get<1>(of.param), "_ranks");
                         });

}  // namespace
}  // namespace quicksilver
