#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

constexpr int32_t kRows = 8;  // Of a block.
constexpr float kThreshold = 0.55f;
constexpr Policy kPolicies[] = {Policy::kStatic, Policy::kDynamic, Policy::kSequential, Policy::kThreshold};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Confidence of row i: no two are equal; three are above the threshold.
float ConfidenceOf(int32_t i) { return static_cast<float>((i * 3 + 2) % kRows + 1) / 10.0f; }

/// The rows that commit, written from the rules' words.
std::vector<int32_t> Expected(Policy policy, int32_t scheduled, int32_t commits_min) {
  std::vector<int32_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  if (policy != Policy::kSequential) {
    std::sort(rows.begin(), rows.end(), [](int32_t a, int32_t b) { return ConfidenceOf(a) > ConfidenceOf(b); });
  }
  const int32_t above = static_cast<int32_t>(
      std::count_if(rows.begin(), rows.end(), [](int32_t i) { return ConfidenceOf(i) > kThreshold; }));
  int32_t count = std::max(policy == Policy::kThreshold ? 1 : scheduled, commits_min);
  if (policy == Policy::kDynamic || policy == Policy::kThreshold) count = std::max(count, above);
  rows.resize(static_cast<size_t>(std::min(count, kRows)));
  std::sort(rows.begin(), rows.end());
  return rows;
}

/// What a step needs besides the device.
struct HostStep {
  std::vector<Candidate> candidates{1};  // The first one is the seal.
  std::vector<TopLogit> top;             // Of all rows, or of none.
  std::vector<OpenBlock> blocks;
  std::vector<BlockRow> rows;
  std::vector<CandidateRequest> requests;
  std::vector<int32_t> live, positions, ids;
};

/// Adds a block; row i says token 100 + i.
void AddBlock(const BlockRule& rule, HostStep& step) {
  OpenBlock block;
  block.rule = rule;
  block.first_row = static_cast<int32_t>(step.rows.size());
  block.rows = block.live = kRows;
  step.blocks.push_back(block);
  for (int32_t i = 0; i < kRows; ++i) {
    Candidate candidate;
    candidate.best_id = candidate.sampled_id = 100 + i;
    candidate.best_logit = candidate.sampled_logit = 1.0f;
    candidate.second_logit = candidate.asked_logit = -kInfinity;
    candidate.log_sum_exp = candidate.tempered_log_sum_exp = 1.0 - std::log(ConfidenceOf(i));
    candidate.mean_logit = candidate.tempered_mean_logit = candidate.log_sum_exp;
    step.candidates.push_back(candidate);
    step.rows.push_back({static_cast<int32_t>(step.ids.size()), -1});
    step.requests.emplace_back();
    step.live.push_back(i);
    step.positions.push_back(i);
    step.ids.push_back(-1);
  }
}

/// What a step has left.
struct Advanced {
  std::vector<int32_t> ids, live, positions;
  std::vector<OpenBlock> blocks;
  std::vector<RowChoice> choices;
  std::vector<TopLogit> tops;
  StepControl control;
  uint32_t published = 0;

  /// The rows of a block, which begin at `first`, that have their tokens.
  std::vector<int32_t> Committed(int32_t first) const {
    std::vector<int32_t> rows;
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t token = ids[static_cast<size_t>(first + i)];
      EXPECT_TRUE(token == -1 || token == 100 + i) << token;
      if (token >= 0) rows.push_back(i);
    }
    return rows;
  }
};

class AdvanceBlocksTest : public OpsTest {
 protected:
  Advanced Advance(const HostStep& host, int32_t steps_max = 1) {
    const size_t rows = host.rows.size();
    const auto candidates = PutArray(host.candidates);
    const auto top = PutArray(host.top);
    const auto blocks = PutArray(host.blocks);
    const auto block_rows = PutArray(host.rows);
    const auto requests = PutArray(host.requests);
    const auto live = PutArray(host.live), positions = PutArray(host.positions), ids = PutArray(host.ids);
    const auto ranking = PutArray(std::vector<float>(rows));
    const auto selected = PutArray(std::vector<uint8_t>(rows));
    const auto lists = PutArray(std::vector<TokenId>(1));
    const auto control = PutArray(std::vector<StepControl>{{.steps_max = steps_max}});
    const size_t tops_offset = 128 + rows * sizeof(RowChoice), tops_count = rows * kTopReportedMax;
    const DeviceBuffer results = std::move(ops().AllocateShared(tops_offset + tops_count * sizeof(TopLogit))).value();
    char* const shared = static_cast<char*>(results.data());

    BlockStep step;
    step.candidates = candidates.data();
    step.top = top.data();
    step.first_top_row = host.top.empty() ? static_cast<int32_t>(rows) : 0;
    step.ranks = 1;
    step.blocks = blocks.data();
    step.blocks_count = static_cast<int32_t>(host.blocks.size());
    step.rows = block_rows.data();
    step.rows_count = static_cast<int32_t>(rows);
    step.requests = requests.data();
    step.live = live.data();
    step.positions = positions.data();
    step.ranking = ranking.data();
    step.selected = selected.data();
    step.token_lists = lists.data();
    step.ids = ids.data();
    step.control = control.data();
    step.results = {reinterpret_cast<uint32_t*>(shared), reinterpret_cast<uint64_t*>(shared + 64),
                    reinterpret_cast<RowChoice*>(shared + 128), reinterpret_cast<TopLogit*>(shared + tops_offset)};
    ops().AdvanceBlocks(step);
    Advanced after = {GetArray(ids), GetArray(live), GetArray(positions), GetArray(blocks), {}, {}, {}, 0};
    after.control = GetArray(control)[0];
    after.published = *step.results.published;
    after.choices.assign(step.results.choices, step.results.choices + rows);
    after.tops.assign(step.results.tops, step.results.tops + tops_count);
    return after;
  }
};

TEST_P(AdvanceBlocksTest, EveryPolicyCommitsWhatItAsksForAndAtLeastThePace) {
  for (const int32_t commits_min : {0, 1, 2, 3, 5, 7, 8, 100}) {
    SCOPED_TRACE(commits_min);
    HostStep host;
    for (const Policy policy : kPolicies) {
      BlockRule rule;
      rule.policy = policy;
      rule.threshold = kThreshold;
      rule.masks = kRows;
      rule.steps = 4;
      rule.commits_min = commits_min;
      AddBlock(rule, host);
    }
    const Advanced after = Advance(host);
    ASSERT_EQ(after.published, 1u);
    for (size_t b = 0; b < std::size(kPolicies); ++b) {
      SCOPED_TRACE(static_cast<int>(kPolicies[b]));
      const std::vector<int32_t> committed = after.Committed(static_cast<int32_t>(b) * kRows);
      EXPECT_EQ(committed, Expected(kPolicies[b], /*scheduled=*/2, commits_min));
      std::vector<int32_t> waiting;
      for (int32_t i = 0; i < kRows; ++i) {
        if (!std::binary_search(committed.begin(), committed.end(), i)) waiting.push_back(i);
      }
      ASSERT_EQ(after.blocks[b].live, static_cast<int32_t>(waiting.size()));
      EXPECT_TRUE(std::equal(waiting.begin(), waiting.end(), after.live.begin() + static_cast<ptrdiff_t>(b) * kRows));
      EXPECT_TRUE(
          std::equal(waiting.begin(), waiting.end(), after.positions.begin() + static_cast<ptrdiff_t>(b) * kRows));
    }
  }
}

// decoding.md §21: thresholds .9 and .4 over rows at 0-3 and 6-7 commit rows 1 and 6.
TEST_P(AdvanceBlocksTest, RunsOfMasksAreThoseOfTheCanvas) {
  BlockRule rule;
  rule.policy = Policy::kHierarchical;
  rule.threshold = 0.9f;
  rule.low_threshold = 0.4f;
  HostStep host;
  AddBlock(rule, host);
  host.blocks[0].live = 6;
  const float confidences[] = {0.5f, 0.6f, 0.3f, 0.2f, 0.45f, 0.35f};
  const int32_t positions[] = {40, 41, 42, 43, 46, 47};
  for (size_t i = 0; i < 6; ++i) {
    host.positions[i] = positions[i];
    host.candidates[i + 1].log_sum_exp = 1.0 - std::log(confidences[i]);
  }
  EXPECT_EQ(Advance(host).Committed(0), std::vector<int32_t>({1, 4}));
}

TEST_P(AdvanceBlocksTest, AMeasureRanksRows) {
  HostStep host;
  for (const Measure measure : {Measure::kProbability, Measure::kMargin, Measure::kEntropy}) {
    BlockRule rule;
    rule.measure = measure;
    rule.masks = rule.steps = kRows;  // One row a step.
    AddBlock(rule, host);
    const size_t first = host.candidates.size() - kRows;
    // The second best of all rows but row 2 is as good as the best; the entropy of row 3 alone is 0.
    for (size_t i = 0; i < kRows; ++i) {
      Candidate& candidate = host.candidates[first + i];
      candidate.second_logit = i == 2 ? -kInfinity : candidate.best_logit;
      candidate.mean_logit = candidate.log_sum_exp - (i == 3 ? 0.0 : 1.0);
    }
  }
  const Advanced after = Advance(host);
  EXPECT_EQ(after.Committed(0), std::vector<int32_t>({7}));
  EXPECT_EQ(after.Committed(kRows), std::vector<int32_t>({2}));
  EXPECT_EQ(after.Committed(2 * kRows), std::vector<int32_t>({3}));
}

// decoding.md §21: entropies 0, .02, .05, .3 under a bound of .1 commit four rows, under .05 three.
TEST_P(AdvanceBlocksTest, EntropiesAreBoundWhateverTheMeasureIs) {
  HostStep host;
  for (const float bound : {0.1f, 0.05f}) {
    BlockRule rule;
    rule.policy = Policy::kEntropyBound;
    rule.entropy_bound = bound;
    AddBlock(rule, host);
    const double entropies[] = {0.0, 0.02, 0.05, 0.3, 3.0, 3.0, 3.0, 3.0};
    const size_t first = host.candidates.size() - kRows;
    for (size_t i = 0; i < kRows; ++i) {
      host.candidates[first + i].mean_logit = host.candidates[first + i].log_sum_exp - entropies[i];
    }
  }
  const Advanced after = Advance(host);
  EXPECT_EQ(after.Committed(0), std::vector<int32_t>({0, 1, 2, 3}));
  EXPECT_EQ(after.Committed(kRows), std::vector<int32_t>({0, 1, 2}));
}

TEST_P(AdvanceBlocksTest, ABlockOfTheHostIsReportedAndLeftAlone) {
  HostStep host;
  AddBlock({.policy = Policy::kHost, .masks = kRows}, host);
  AddBlock({.policy = Policy::kStatic, .masks = kRows, .steps = kRows}, host);
  const Advanced after = Advance(host, /*steps_max=*/5);
  EXPECT_TRUE(after.Committed(0).empty());
  EXPECT_EQ(after.blocks[0].live, kRows);
  EXPECT_EQ(after.Committed(kRows).size(), 1u) << "its neighbour goes on";
  EXPECT_EQ(after.control.stop, 1);
  EXPECT_EQ(after.control.proceed, 0) << "the launch ends";
  for (int32_t i = 0; i < kRows; ++i) {
    EXPECT_EQ(after.choices[static_cast<size_t>(i)].token, 100 + i);
    EXPECT_NEAR(after.choices[static_cast<size_t>(i)].confidence, ConfidenceOf(i), 1e-6);
  }
}

TEST_P(AdvanceBlocksTest, ARowWithoutAPlaceInTheBatchIsWrittenNowhere) {
  HostStep host;
  AddBlock({.masks = kRows, .steps = 1}, host);
  host.rows[3].id_row = -1;
  const Advanced after = Advance(host);
  EXPECT_EQ(after.Committed(0), std::vector<int32_t>({0, 1, 2, 4, 5, 6, 7}));
  EXPECT_EQ(after.blocks[0].live, 0) << "it has its token all the same";
  EXPECT_EQ(after.choices[3].token, 103);
}

TEST_P(AdvanceBlocksTest, AlternativesAreReportedOfBlocksThatWantThem) {
  HostStep host;
  AddBlock({.policy = Policy::kHost, .top_reported = 2}, host);
  AddBlock({.policy = Policy::kHost}, host);
  for (int32_t row = 0; row < 2 * kRows; ++row) {
    std::vector<TopLogit> list(kTopLogitsMax, {-kInfinity, -1});
    list[0] = {1.0f, 100 + row % kRows};
    list[1] = {0.5f, 7};
    list[2] = {0.25f, 8};
    host.top.insert(host.top.end(), list.begin(), list.end());
  }
  const Advanced after = Advance(host);
  for (int32_t i = 0; i < kRows; ++i) {
    const TopLogit* const tops = after.tops.data() + i * kTopReportedMax;
    EXPECT_EQ(tops[0].id, 100 + i);
    EXPECT_NEAR(tops[0].logit, std::log(ConfidenceOf(i)), 1e-6);
    EXPECT_EQ(tops[1].id, 7);
    EXPECT_NEAR(tops[1].logit, std::log(ConfidenceOf(i)) - 0.5, 1e-6);
    EXPECT_EQ(tops[2].id, -1);
    EXPECT_EQ(tops[kRows * kTopReportedMax].id, 0) << "the other block's were not touched";
  }
}

INSTANTIATE_OPS_TEST(AdvanceBlocksTest);

}  // namespace
}  // namespace quicksilver
