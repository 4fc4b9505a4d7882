// Step-by-step decodings of the reference implementations, reproduced by the service's own engine.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/golden.h"
#include "tools/golden_check.h"

namespace quicksilver {
namespace {

// Family, dtype of the checkpoint, tensor-parallel size.
using Case = std::tuple<const char*, const char*, int>;

class GoldenTracesTest : public testing::TestWithParam<Case> {};

TEST_P(GoldenTracesTest, EveryStepEqualsTheRecordedOne) {
  const auto& [family, dtype, ranks] = GetParam();
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet(golden->directory());
  ASSERT_TRUE(set.ok()) << set.status();
  const absl::StatusOr<std::string> directory = golden->CheckpointDirectory(family, dtype);
  ASSERT_TRUE(directory.ok()) << directory.status();
  const auto results = CheckTraces(*set, {*directory, absl::StrCat(family, "-", dtype), family}, ranks,
                                   [] { return MakeCpuOps(DType::kF32, CpuOpsOptions()); });
  EXPECT_GE(results.size(), 8u) << "the open set alone has more";
  for (const CaseResult& result : results) {
    EXPECT_EQ(result.verdict, Verdict::kPass) << result.name << ": " << result.detail;
  }
}

// Their narrowest decision is 0.1 wide or more, so even bfloat16 arithmetic may not change a step.
// step.
TEST_P(GoldenTracesTest, WideTracesSurviveBf16Arithmetic) {
  const auto& [family, dtype, ranks] = GetParam();
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  absl::StatusOr<GoldenSet> set = ReadGoldenSet(golden->directory());
  ASSERT_TRUE(set.ok()) << set.status();
  std::erase_if(set->traces, [](const GoldenTrace& trace) { return trace.name.find("/wide_") == std::string::npos; });
  const absl::StatusOr<std::string> directory = golden->CheckpointDirectory(family, dtype);
  ASSERT_TRUE(directory.ok()) << directory.status();
  const auto results = CheckTraces(
      *set, {*directory, absl::StrCat(family, "-", dtype), family}, ranks,
      [] { return MakeCpuOps(DType::kBf16, CpuOpsOptions()); }, /*confidence_error_max=*/0.1);
  EXPECT_FALSE(results.empty());
  for (const CaseResult& result : results) {
    EXPECT_EQ(result.verdict, Verdict::kPass) << result.name << ": " << result.detail;
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& of) {
  const auto& [family, dtype, ranks] = of.param;
  return absl::StrCat(family, "_", dtype, "_tp", ranks);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTracesTest,
                         testing::Combine(testing::Values("llada", "sdar"), testing::Values("f32", "bf16"),
                                          testing::Values(1, 2, 4)),
                         CaseName);

// The comparison itself must be able to fail.
TEST(GoldenSetTest, AChangedTokenConfidenceOrStepIsReported) {
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  absl::StatusOr<GoldenSet> set = ReadGoldenSet(golden->directory());
  ASSERT_TRUE(set.ok()) << set.status();
  const absl::StatusOr<std::string> directory = golden->CheckpointDirectory("sdar", "bf16");
  ASSERT_TRUE(directory.ok()) << directory.status();
  std::vector<GoldenTrace*> traces;
  for (GoldenTrace& trace : set->traces) {
    if (trace.family == "sdar" && trace.block_length == 4) traces.push_back(&trace);
  }
  ASSERT_GE(traces.size(), 4u);
  traces[0]->rows[0].steps[2][0].token ^= 1;
  traces[1]->rows[0].steps[3][0].confidence += 0.002f;
  traces[2]->rows[0].steps.pop_back();
  int failed = 0;
  for (const CaseResult& result :
       CheckTraces(*set, {*directory, "sdar-bf16", "sdar"}, 1, [] { return MakeReferenceOps(DType::kF32); })) {
    if (result.verdict != Verdict::kFail) continue;
    ++failed;
    if (result.name == traces[0]->name) {
      EXPECT_EQ(result.detail.rfind("row 0, step 2: expected", 0), 0u) << result.detail;
    }
  }
  EXPECT_EQ(failed, 3);
}

// A case that cannot be run must be told apart from one that passed.
TEST(GoldenSetTest, UnsupportedFamiliesAndKindsAreSkippedWithAReason) {
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet(golden->directory());
  ASSERT_TRUE(set.ok()) << set.status();
  int skipped_kinds = 0, skipped_families = 0;
  for (const CaseResult& result : ListSkipped(*set)) {
    EXPECT_EQ(result.verdict, Verdict::kSkipped);
    if (result.detail == "cache dual is not supported") ++skipped_kinds;
    if (result.detail == "family dream is not supported") ++skipped_families;
  }
  EXPECT_GT(skipped_kinds, 0);
  EXPECT_GT(skipped_families, 0);
}

TEST(GoldenSetTest, ADirectoryWithoutAManifestIsNamed) {
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet("/nonexistent/golden");
  ASSERT_FALSE(set.ok());
  EXPECT_NE(set.status().message().find("/nonexistent/golden/manifest.json"), absl::string_view::npos);
}

}  // namespace
}  // namespace quicksilver
