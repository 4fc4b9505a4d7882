#include "worker/decoding/procedures/credit.h"

#include <algorithm>
#include <cmath>

#include "worker/decoding/procedures/rows.h"

namespace quicksilver {
namespace {

/// Logit of `token`, credit of earlier steps included.
double LogitOf(const RowChoice& choice, TokenId token, absl::Span<const TopLogit> tops) {
  for (const TopLogit& top : tops) {
    if (top.id == token) return top.logit;
  }
  return static_cast<double>(choice.log_probability) + choice.log_sum_exp;
}

/// ln(e^a + e^b (e^c - 1)): e^b, a part of the sum e^a, becomes e^(b + c).
double Raise(double a, double b, double c) { return a + std::log1p(std::exp(std::min(b - a, 0.0)) * std::expm1(c)); }

}  // namespace

void Credit::OpenBlock(const CanvasView& view) {
  static_cast<void>(view);
  credit_.clear();
}

double Credit::BonusOf(const Row& row, TokenId id) const {
  const auto found = row.find(id);
  return found == row.end() ? 0.0 : settings_.alpha * std::log1p(found->second);
}

void Credit::AppendBiases(int32_t position, std::vector<TokenBias>& biases) const {
  const auto row = credit_.find(position);
  if (row == credit_.end()) return;
  for (const auto& [id, value] : row->second) {
    biases.push_back({id, static_cast<float>(settings_.alpha * std::log1p(value))});
  }
}

// Adds the step's credit to `row`, and returns what the row says with it.
RowChoice Credit::Credited(Row& row, const RowChoice& choice, absl::Span<const TopLogit> tops,
                           const DrawPlace& place) const {
  double raw_sum = choice.log_sum_exp, best = -std::numeric_limits<double>::infinity();
  TokenId best_id = choice.token;
  for (const TopLogit& top : tops) {
    if (top.id < 0) break;
    const double bonus = BonusOf(row, top.id);
    if (bonus > 0.0) raw_sum = Raise(raw_sum, top.logit, -bonus);
    const double raw = top.logit - bonus;
    if (raw > best || (raw == best && top.id < best_id)) {
      best = raw;
      best_id = top.id;
    }
  }
  const double probability = std::exp(std::min(best - raw_sum, 0.0));
  const double before = BonusOf(row, best_id);
  const TokenId drawn = choice.token;
  const double drawn_raw = LogitOf(choice, drawn, tops) - BonusOf(row, drawn);
  row[best_id] += std::pow(probability, static_cast<double>(settings_.gamma));
  const double sum = Raise(choice.log_sum_exp, best + before, BonusOf(row, best_id) - before);

  // Nothing but best_id has got a larger logit, so either it wins now or what won before.
  double logit = drawn_raw + BonusOf(row, drawn), raw = drawn_raw;
  RowChoice credited = choice;
  if (drawn != best_id) {
    const double rival = best + BonusOf(row, best_id);
    double lead = rival - logit;
    if (settings_.sampling.temperature > 0.0f) {
      lead = lead / static_cast<double>(settings_.sampling.temperature) +
             GumbelDraw(place, static_cast<uint32_t>(best_id)) - GumbelDraw(place, static_cast<uint32_t>(drawn));
    }
    if (lead > 0.0 || (lead == 0.0 && best_id < drawn)) {
      credited.token = best_id;
      logit = rival;
      raw = best;
    }
  }
  credited.confidence = static_cast<float>(std::exp(std::min(logit - sum, 0.0)));
  credited.log_probability = static_cast<float>(raw - raw_sum);
  return credited;
}

Decision Credit::Decide(const CanvasView& view, const StepNumbers& numbers) {
  const std::vector<RowAsk> rows = AskedRows(*this, view, numbers);
  std::vector<RowChoice> choices;
  std::vector<float> rank;
  for (size_t i = 0; i < rows.size(); ++i) {
    const absl::Span<const TopLogit> tops = numbers.tops.subspan(i * kTopReportedMax, kTopReportedMax);
    Row& row = credit_[rows[i].position];
    choices.push_back(Credited(row, numbers.choices[i], tops, PlaceIn(view, settings_.sampling, rows[i].position)));
    rank.push_back(choices.back().confidence);
    for (auto& [id, value] : row) value *= static_cast<double>(settings_.beta);
    if (row.size() <= kIdsMax) continue;
    row.erase(
        std::min_element(row.begin(), row.end(), [](const auto& a, const auto& b) { return a.second < b.second; }));
  }
  std::vector<uint8_t> written(rows.size());
  const int32_t count = static_cast<int32_t>(rows.size());
  for (int32_t i = 0; i < count; ++i) {
    written[static_cast<size_t>(i)] = IsSelectedByThreshold(rank.data(), count, i, settings_.threshold, 1) ? 1 : 0;
  }
  Decision decision;
  decision.paced = MarkBest(rank, view.commits_min, written);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (written[i] == 0) continue;
    decision.writes.push_back(WriteOf(rows[i].position, choices[i]));
    credit_.erase(rows[i].position);
  }
  return decision;
}

}  // namespace quicksilver
