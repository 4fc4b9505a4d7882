// Step-by-step decodings of the reference implementations, reproduced by the service's own engine.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/golden.h"
#include "tests/support/golden_ops.h"
#include "tests/support/temp_directory.h"
#include "tools/golden_check.h"

namespace quicksilver {
namespace {

class GoldenTracesTest : public testing::TestWithParam<GoldenCase> {
 protected:
  void SetUp() override {
    const auto& [family, dtype, ranks, kind] = GetParam();
    if (!kind.missing.empty()) GTEST_SKIP() << kind.missing;
  }
};

TEST_P(GoldenTracesTest, EveryStepEqualsTheRecordedOne) {
  const auto& [family, dtype, ranks, kind] = GetParam();
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet(golden->directory());
  ASSERT_TRUE(set.ok()) << set.status();
  const absl::StatusOr<std::string> directory = golden->CheckpointDirectory(family, dtype);
  ASSERT_TRUE(directory.ok()) << directory.status();
  const auto results = CheckTraces(*set, {*directory, absl::StrCat(family, "-", dtype), family}, ranks,
                                   [make = kind.make] { return make(DType::kF32); });
  EXPECT_GE(results.size(), 3u) << "the open set alone has as many";
  for (const CaseResult& result : results) {
    EXPECT_EQ(result.verdict, Verdict::kPass) << result.name << ": " << result.detail;
  }
}

// Their narrowest decision is 0.1 wide or more, so even bfloat16 arithmetic may not change a step.
TEST_P(GoldenTracesTest, WideTracesSurviveBf16Arithmetic) {
  const auto& [family, dtype, ranks, kind] = GetParam();
  const absl::StatusOr<Golden> golden = Golden::Open();
  ASSERT_TRUE(golden.ok()) << golden.status();
  absl::StatusOr<GoldenSet> set = ReadGoldenSet(golden->directory());
  ASSERT_TRUE(set.ok()) << set.status();
  std::erase_if(set->traces, [](const GoldenTrace& trace) { return trace.name.find("/wide_") == std::string::npos; });
  const absl::StatusOr<std::string> directory = golden->CheckpointDirectory(family, dtype);
  ASSERT_TRUE(directory.ok()) << directory.status();
  const auto results = CheckTraces(
      *set, {*directory, absl::StrCat(family, "-", dtype), family}, ranks,
      [make = kind.make] { return make(DType::kBf16); }, /*confidence_error_max=*/0.1);
  EXPECT_FALSE(results.empty());
  for (const CaseResult& result : results) {
    EXPECT_EQ(result.verdict, Verdict::kPass) << result.name << ": " << result.detail;
  }
}

std::string CaseName(const testing::TestParamInfo<GoldenCase>& of) {
  const auto& [family, dtype, ranks, kind] = of.param;
  return absl::StrCat(family, "_", dtype, "_tp", ranks, "_", kind.name);
}

// The reference is too slow for whole decodings.
std::vector<GoldenOps> FastGoldenOps() {
  std::vector<GoldenOps> kinds = AllGoldenOps();
  std::erase_if(kinds, [](const GoldenOps& kind) { return std::string(kind.name) == "reference"; });
  return kinds;
}

// A device's twin takes half a minute for a family: the copies of a checkpoint hold the same numbers, so one will do.
std::vector<GoldenCase> TraceCases() {
  std::vector<GoldenCase> cases = GoldenCases(FastGoldenOps());
  std::set<std::string> seen;
  std::erase_if(cases, [&](const GoldenCase& of) {
    const auto& [family, dtype, ranks, kind] = of;
    return kind.ranks_max == 1 && !seen.insert(family).second;
  });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTracesTest, testing::ValuesIn(TraceCases()), CaseName);

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
    if (trace.family == "sdar" && trace.grid_block == 4) traces.push_back(&trace);
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
TEST(GoldenSetTest, KindsAndParametersThatNobodyKnowsAreSkippedWithAReason) {
  const TempDirectory directory;
  directory.Write("manifest.json", R"({"checkpoints": [], "traces": [
    {"file": "kind.json", "family": "llada", "kind": "llada.dreamt"},
    {"file": "parameter.json", "family": "llada", "kind": "llada.generate"}]})");
  directory.Write("kind.json", R"({"params": {"gen_length": 8}, "prompts": [[1]], "steps": [], "mask_id": 250})");
  directory.Write("parameter.json", R"({"params": {"gen_length": 8, "block_length": 8, "steps": 8, "magic": 3},
                                        "prompts": [[1]], "steps": [], "mask_id": 250})");
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet(directory.path());
  ASSERT_TRUE(set.ok()) << set.status();
  const std::vector<CaseResult> skipped = ListSkipped(*set);
  ASSERT_EQ(skipped.size(), 2u);
  EXPECT_EQ(skipped[0].verdict, Verdict::kSkipped);
  EXPECT_EQ(skipped[0].detail, "kind llada.dreamt is not supported");
  EXPECT_EQ(skipped[1].detail, "parameter magic is not supported");
}

TEST(GoldenSetTest, ADirectoryWithoutAManifestIsNamed) {
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet("/nonexistent/golden");
  ASSERT_FALSE(set.ok());
  EXPECT_NE(set.status().message().find("/nonexistent/golden/manifest.json"), absl::string_view::npos);
}

}  // namespace
}  // namespace quicksilver
