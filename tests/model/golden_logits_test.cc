#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/golden.h"
#include "tests/support/golden_ops.h"
#include "tests/support/golden_rows.h"
#include "tests/support/model_group.h"

namespace quicksilver {
namespace {

double MeanError(const HostRows& a, const HostRows& b) {
  double sum = a.values.size() == b.values.size() ? 0.0 : INFINITY;
  for (size_t i = 0; i < std::min(a.values.size(), b.values.size()); ++i) {
    sum += std::abs(double{a.values[i]} - double{b.values[i]});
  }
  return sum / static_cast<double>(a.values.size());
}

class GoldenLogitsTest : public testing::TestWithParam<GoldenCase> {
 protected:
  void Load(DType activation) {
    const auto [family, dtype, ranks, kind] = GetParam();
    if (!kind.missing.empty()) GTEST_SKIP() << kind.missing;
    const absl::StatusOr<Golden> golden = Golden::Open();
    ASSERT_TRUE(golden.ok()) << golden.status();
    absl::StatusOr<std::vector<GoldenForward>> forwards = golden->Forwards(family);
    ASSERT_TRUE(forwards.ok()) << forwards.status();
    forwards_ = *std::move(forwards);
    const absl::StatusOr<std::string> directory = golden->CheckpointDirectory(family, dtype);
    ASSERT_TRUE(directory.ok()) << directory.status();
    const auto make_ops = [kind = kind, activation] { return kind.make(activation); };
    auto group = ModelGroup::Load(*directory, ranks, make_ops, ModelGroup::Sizes(),
                                  {.block_length = forwards_.front().block_length, .mask_id = kGoldenMaskId});
    ASSERT_TRUE(group.ok()) << group.status();
    group_ = *std::move(group);
  }

  HostRows Run(const GoldenForward& forward,
               const std::function<void(const std::string&, const HostRows&)>& observer = nullptr) {
    return group_->Logits({{forward.ids, 0, PagesFor(forward.ids.size(), 8)}}, forward.block_length, observer);
  }

  std::vector<GoldenForward> forwards_;
  std::unique_ptr<ModelGroup> group_;
};

TEST_P(GoldenLogitsTest, EqualTheRecordedOnes) {
  ASSERT_NO_FATAL_FAILURE(Load(DType::kF32));
  if (IsSkipped()) return;
  for (const GoldenForward& forward : forwards_) {
    EXPECT_LE(MaxError(Run(forward), forward.logits), kGoldenLogitErrorMax) << forward.name;
  }
}

TEST_P(GoldenLogitsTest, HiddenStatesEqualTheRecordedOnes) {
  ASSERT_NO_FATAL_FAILURE(Load(DType::kF32));
  if (IsSkipped()) return;
  size_t compared = 0;
  for (const GoldenForward& forward : forwards_) {
    std::vector<std::pair<std::string, HostRows>> seen;
    Run(forward, [&](const std::string& name, const HostRows& rows) { seen.emplace_back(name, rows); });
    for (const auto& [name, recorded] : forward.hidden) {
      const auto found =
          std::find_if(seen.begin(), seen.end(), [&wanted = name](const auto& s) { return s.first == wanted; });
      ASSERT_NE(found, seen.end()) << name;
      EXPECT_LE(MaxError(found->second, recorded), kGoldenLogitErrorMax) << forward.name << " " << name;
      ++compared;
    }
  }
  EXPECT_GE(compared, 5u);
}

// Every segment of a step has its own length and positions; the bits of a row may not show it.
TEST_P(GoldenLogitsTest, OneBatchOfAllCasesGivesTheBitsOfEachAlone) {
  ASSERT_NO_FATAL_FAILURE(Load(DType::kF32));
  if (IsSkipped()) return;
  for (const int32_t block : {kBidirectional, 4, 8}) {
    std::vector<TestSegment> segments;
    std::vector<float> alone;
    for (const GoldenForward& forward : forwards_) {
      if (forward.block_length != block) continue;
      const HostRows rows = Run(forward);
      alone.insert(alone.end(), rows.values.begin(), rows.values.end());
      segments.push_back({forward.ids, 0, PagesFor(forward.ids.size(), 8, static_cast<int32_t>(10 * segments.size()))});
    }
    if (segments.empty()) continue;
    EXPECT_TRUE(group_->Logits(segments, block).values == alone) << "block " << block;
  }
}

// bfloat16 has no exact answer: the reference itself is that far from its own float32 numbers.
TEST_P(GoldenLogitsTest, ComputedInBf16StayWithinTwiceTheReferencesError) {
  ASSERT_NO_FATAL_FAILURE(Load(DType::kBf16));
  if (IsSkipped()) return;
  for (const GoldenForward& forward : forwards_) {
    EXPECT_LE(MeanError(Run(forward), forward.logits), 2.0 * forward.bf16_mean_error) << forward.name;
  }
}

std::string CaseName(const testing::TestParamInfo<GoldenCase>& of) {
  const auto& [family, dtype, ranks, kind] = of.param;
  return absl::StrCat(family, "_", dtype, "_tp", ranks, "_", kind.name);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenLogitsTest, testing::ValuesIn(GoldenCases(AllGoldenOps())), CaseName);

}  // namespace
}  // namespace quicksilver
