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
constexpr int32_t kBlocks = 4;

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
  std::vector<OpenBlock> blocks;
  std::vector<BlockRow> rows;
  std::vector<CandidateRequest> requests;
  std::vector<int32_t> live, positions, ids;
};

/// One block a policy; row i of each says token 100 + i.
HostStep MakeStep(int32_t commits_min) {
  HostStep step;
  for (const Policy policy : kPolicies) {
    OpenBlock block;
    block.rule.policy = policy;
    block.rule.threshold = kThreshold;
    block.rule.masks = kRows;
    block.rule.steps = 4;
    block.rule.commits_min = commits_min;
    block.first_row = static_cast<int32_t>(step.rows.size());
    block.rows = block.live = kRows;
    step.blocks.push_back(block);
    for (int32_t i = 0; i < kRows; ++i) {
      Candidate candidate;
      candidate.best_id = candidate.sampled_id = 100 + i;
      candidate.best_logit = candidate.sampled_logit = 1.0f;
      candidate.log_sum_exp = candidate.tempered_log_sum_exp = 1.0 - std::log(ConfidenceOf(i));
      step.candidates.push_back(candidate);
      step.rows.push_back({static_cast<int32_t>(step.ids.size()), -1});
      step.requests.emplace_back();
      step.live.push_back(i);
      step.positions.push_back(i);
      step.ids.push_back(-1);
    }
  }
  return step;
}

using AdvanceBlocksTest = OpsTest;

TEST_P(AdvanceBlocksTest, EveryPolicyCommitsWhatItAsksForAndAtLeastThePace) {
  for (const int32_t commits_min : {0, 1, 2, 3, 5, 7, 8, 100}) {
    SCOPED_TRACE(commits_min);
    const HostStep host = MakeStep(commits_min);
    const size_t rows = host.rows.size();
    const auto candidates = PutArray(host.candidates);
    const auto blocks = PutArray(host.blocks);
    const auto block_rows = PutArray(host.rows);
    const auto requests = PutArray(host.requests);
    const auto live = PutArray(host.live), positions = PutArray(host.positions);
    const auto ids = PutArray(host.ids);
    const auto ranking = PutArray(std::vector<float>(rows));
    const auto selected = PutArray(std::vector<uint8_t>(rows));
    const auto lists = PutArray(std::vector<TokenId>(1));
    const auto control = PutArray(std::vector<StepControl>(1));
    const DeviceBuffer results = std::move(ops().AllocateShared(128 + rows * sizeof(RowChoice))).value();

    BlockStep step;
    step.candidates = candidates.data();
    step.first_top_row = static_cast<int32_t>(rows);
    step.ranks = 1;
    step.blocks = blocks.data();
    step.blocks_count = kBlocks;
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
    char* const shared = static_cast<char*>(results.data());
    step.results = {reinterpret_cast<uint32_t*>(shared), reinterpret_cast<uint64_t*>(shared + 64),
                    reinterpret_cast<RowChoice*>(shared + 128), nullptr};
    ops().AdvanceBlocks(step);
    const std::vector<int32_t> written = GetArray(ids), left = GetArray(live);
    const std::vector<OpenBlock> after = GetArray(blocks);
    ASSERT_EQ(*step.results.published, 1u);
    for (size_t b = 0; b < kBlocks; ++b) {
      SCOPED_TRACE(static_cast<int>(kPolicies[b]));
      std::vector<int32_t> committed, waiting;
      for (int32_t i = 0; i < kRows; ++i) {
        const int32_t token = written[b * kRows + static_cast<size_t>(i)];
        EXPECT_TRUE(token == -1 || token == 100 + i) << token;
        (token >= 0 ? committed : waiting).push_back(i);
      }
      EXPECT_EQ(committed, Expected(kPolicies[b], /*scheduled=*/2, commits_min));
      ASSERT_EQ(after[b].live, static_cast<int32_t>(waiting.size()));
      EXPECT_TRUE(std::equal(waiting.begin(), waiting.end(), left.begin() + static_cast<ptrdiff_t>(b) * kRows));
    }
  }
}

INSTANTIATE_OPS_TEST(AdvanceBlocksTest);

}  // namespace
}  // namespace quicksilver
