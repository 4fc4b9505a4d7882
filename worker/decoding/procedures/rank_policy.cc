#include "worker/decoding/procedures/rank_policy.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {
namespace {

/// What a commit is reported with: the rank, unless that says nothing about the row.
float ReportedConfidence(const BlockRule& rule, const RowChoice& choice) {
  BlockRule measured = rule;
  measured.remasking = Remasking::kLowConfidence;
  return RankOf(measured, choice, DrawPlace(), TokenList());
}

}  // namespace

BlockRule RankPolicy::RuleOf(const CanvasView& view) const {
  BlockRule rule = settings_.rule;
  rule.commits_min = view.commits_min;
  if (settings_.blocks == 0) return rule;
  rule.masks = 0;
  for (int32_t p = view.first; p < view.end; ++p) rule.masks += view.fixed[static_cast<size_t>(p)] == 0 ? 1 : 0;
  rule.masks = std::max(1, rule.masks);
  rule.steps = std::clamp(ScheduledCount(settings_.rule.steps, settings_.blocks, view.block), 1, rule.masks);
  return rule;
}

std::optional<BlockRule> RankPolicy::DeviceRule(const CanvasView& view) const { return RuleOf(view); }

Decision RankPolicy::Decide(const CanvasView& view, const StepNumbers& numbers) {
  BlockRule rule = RuleOf(view);
  std::vector<RowAsk> asked;
  Ask(view, asked);
  CHECK(asked.size() == numbers.choices.size());
  const TokenList last = {settings_.distrusted.data(), static_cast<int32_t>(settings_.distrusted.size())};
  std::vector<float> rank(asked.size());
  std::vector<int32_t> positions(asked.size());
  const RankedRows rows = {rank.data(), positions.data(), static_cast<int32_t>(asked.size())};
  int32_t above = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    positions[i] = asked[i].position;
    const DrawPlace place = {rule.sampling.seed, rule.sampling.choice, static_cast<uint32_t>(asked[i].position),
                             static_cast<uint32_t>(view.forwards)};
    rank[i] = RankOf(rule, numbers.choices[i], place, last);
    above += rank[i] > rule.threshold ? 1 : 0;
  }
  const int32_t count = ScheduledNow(rule, view.block_forwards);
  rule.commits_min = 0;
  const int32_t unpaced_count = ScheduledNow(rule, view.block_forwards);
  Decision decision;
  for (int32_t i = 0; i < rows.rows; ++i) {
    if (!IsSelected(rule, rows, i, count, above)) continue;
    const RowChoice& choice = numbers.choices[static_cast<size_t>(i)];
    decision.writes.push_back(
        {positions[static_cast<size_t>(i)], choice.token, ReportedConfidence(rule, choice), choice.log_probability});
    if (count != unpaced_count) decision.paced = decision.paced || !IsSelected(rule, rows, i, unpaced_count, above);
  }
  return decision;
}

}  // namespace quicksilver
