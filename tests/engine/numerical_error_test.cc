// One sequence whose logits are not numbers must fail alone.
#include <filesystem>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"
#include "tests/support/golden.h"
#include "tests/support/temp_directory.h"
#include "worker/checkpoint/checkpoint.h"

namespace quicksilver {
namespace {

constexpr TokenId kPoison = 77;

/// A copy of the recorded SDAR checkpoint in which the embedding of kPoison is NaN.
void WritePoisonedCheckpoint(const std::string& from, const TempDirectory& to) {
  for (const auto& entry : std::filesystem::directory_iterator(from)) {
    std::filesystem::copy(entry.path(), to.PathOf(entry.path().filename().string()));
  }
  const auto checkpoint = Checkpoint::Open(from);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const StoredTensor* embedding = (*checkpoint)->Find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  const size_t row_bytes = static_cast<size_t>(embedding->shape[1]) * 2;
  std::string bytes = to.Read("model.safetensors");
  for (size_t i = 0; i < row_bytes; i += 2) {
    bytes.replace(embedding->offset + kPoison * row_bytes + i, 2, "\xC0\x7F");  // bfloat16 0x7FC0
  }
  std::filesystem::permissions(to.PathOf("model.safetensors"), std::filesystem::perms::owner_write,
                               std::filesystem::perm_options::add);
  to.Write("model.safetensors", bytes);
}

EngineGroup::Options OptionsFor(const std::string& directory, bool reference) {
  EngineGroup::Options options;
  options.directory = directory;
  options.ranks = 2;
  options.engine.step_rows_max = 32;  // Long prompts take several steps, after each of which whole pages are kept.
  options.pages = 12;                 // Few, so that later sequences get the pages of the poisoned one.
  options.make_ops = [reference] {
    return reference ? MakeReferenceOps(DType::kF32) : MakeCpuOps(DType::kF32, CpuOpsOptions());
  };
  return options;
}

class NumericalErrorTest : public testing::TestWithParam<bool> {};

TEST_P(NumericalErrorTest, FailsItsSequenceAndNoOther) {
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  const std::string clean_directory = *golden->CheckpointDirectory("sdar", "bf16");
  const TempDirectory poisoned_directory;
  ASSERT_NO_FATAL_FAILURE(WritePoisonedCheckpoint(clean_directory, poisoned_directory));

  const auto clean = EngineGroup::Start(OptionsFor(clean_directory, GetParam()));
  const auto poisoned = EngineGroup::Start(OptionsFor(poisoned_directory.path(), GetParam()));
  ASSERT_TRUE(clean.ok() && poisoned.ok());
  for (uint64_t round = 0; round < 3; ++round) {
    std::vector<v1::Submit> others;
    for (uint64_t i = 0; i < 4; ++i) {
      others.push_back(MakeSubmit(100 * round + i, {static_cast<TokenId>(3 + i), 9, 27}, 16));
    }
    const auto expected = (*clean)->RunAll(others);
    ASSERT_TRUE(expected.ok()) << expected.status();

    std::vector<TokenId> prompt(100, 5);
    prompt[11] = kPoison;
    v1::Submit poison = MakeSubmit(100 * round + 50, prompt, 40);
    poison.set_cache_salt("shared");
    ASSERT_TRUE((*poisoned)->Submit(poison).ok());
    const auto found = (*poisoned)->RunAll(others);
    ASSERT_TRUE(found.ok()) << found.status();
    const auto failed = (*poisoned)->Await(100 * round + 50);
    ASSERT_TRUE(failed.ok()) << failed.status();
    EXPECT_EQ(failed->end.reason(), v1::SequenceEnd::REASON_ERROR);
    EXPECT_EQ(failed->end.error_code(), "numerical_error");
    EXPECT_EQ(failed->end.cached_tokens(), 0u) << "its KV is not kept for others";
    for (size_t i = 0; i < others.size(); ++i) {
      for (const TokenId token : (*expected)[i].answer) ASSERT_NE(token, kPoison) << "pick other prompts";
      EXPECT_EQ((*found)[i].answer, (*expected)[i].answer);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Operations, NumericalErrorTest, testing::Bool(), [](const testing::TestParamInfo<bool>& of) {
  return std::string(of.param ? "reference" : "cpu");
});

}  // namespace
}  // namespace quicksilver
