#include "tests/decoding/procedures/fake_model.h"

#include <algorithm>
#include <cmath>

namespace quicksilver {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  const PhiloxWords words = Philox(a, static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32), 0x51, 0x52);
  return (uint64_t{words.w[0]} << 32) | words.w[1];
}

/// In (-1.7, 1.7), about as wide as a standard normal.
float Spread(uint64_t bits) {
  return static_cast<float>(static_cast<double>(bits >> 11) / 9007199254740992.0 - 0.5) * 3.4f;
}

}  // namespace

std::vector<float> FakeModel::Logits(absl::Span<const TokenId> tokens, int32_t position, bool shadow) const {
  uint64_t seen = 7;
  for (int32_t p = 0; p < static_cast<int32_t>(tokens.size()); ++p) {
    const TokenId token = shadow && p == position ? kMask : tokens[static_cast<size_t>(p)];
    seen = Mix(seen, static_cast<uint64_t>(token));
  }
  std::vector<float> logits;
  const uint64_t own = Mix(seed, static_cast<uint64_t>(position) + 1000);
  for (int32_t id = 0; id < kVocabulary; ++id) {
    const uint64_t at = Mix(own, static_cast<uint64_t>(id));
    logits.push_back(scale * Spread(at) + coupling * Spread(Mix(at, seen)));
  }
  logits[kMask] += mask_bias;
  logits[kEos] += eos_bias;
  logits[kDelete] += control_bias;
  logits[kInsert] += control_bias;
  return logits;
}

std::vector<double> Softmax(absl::Span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  double sum = 0.0;
  for (const float z : logits) {
    p.push_back(std::exp(z - largest));
    sum += p.back();
  }
  for (double& one : p) one /= sum;
  return p;
}

TokenId BestId(absl::Span<const float> logits) {
  TokenId best = -1;
  for (TokenId id = 0; id < FakeModel::kVocabulary; ++id) {
    if (id == FakeModel::kMask) continue;
    if (best < 0 || logits[static_cast<size_t>(id)] > logits[static_cast<size_t>(best)]) best = id;
  }
  return best;
}

RowChoice ChoiceOf(absl::Span<const float> logits, TokenId asked_id, absl::Span<const float> previous,
                   const SamplingRule& sampling, const DrawPlace& place) {
  const std::vector<double> p = Softmax(logits);
  RowChoice choice;
  choice.token = BestId(logits);
  if (sampling.temperature > 0.0f) {
    const auto score = [&](TokenId id) {
      return logits[static_cast<size_t>(id)] / sampling.temperature + GumbelDraw(place, static_cast<uint32_t>(id));
    };
    for (TokenId id = 0; id < FakeModel::kMask; ++id) {
      if (score(id) > score(choice.token)) choice.token = id;
    }
  }
  double entropy = 0.0, mean_previous = 0.0;
  for (size_t id = 0; id < p.size(); ++id) {
    entropy -= p[id] > 0.0 ? p[id] * std::log(p[id]) : 0.0;
    if (!previous.empty()) mean_previous += p[id] * previous[id];
  }
  const double chosen = p[static_cast<size_t>(choice.token)];
  choice.confidence = static_cast<float>(chosen);
  choice.log_probability = static_cast<float>(std::log(chosen));
  choice.entropy = static_cast<float>(entropy);
  choice.log_sum_exp = logits[static_cast<size_t>(choice.token)] - std::log(chosen);
  choice.mean_previous = mean_previous;
  if (asked_id >= 0) choice.asked_probability = static_cast<float>(p[static_cast<size_t>(asked_id)]);
  choice.finite = true;
  return choice;
}

std::vector<TopLogit> TopsOf(absl::Span<const float> logits) {
  std::vector<TopLogit> tops;
  for (TokenId id = 0; id < FakeModel::kMask; ++id) tops.push_back({logits[static_cast<size_t>(id)], id});
  std::stable_sort(tops.begin(), tops.end(), [](const TopLogit& a, const TopLogit& b) { return a.logit > b.logit; });
  tops.resize(kTopReportedMax);
  return tops;
}

}  // namespace quicksilver
