#include "tests/support/gemma_decoding.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace quicksilver {

Renoise::Settings NoisyRenoise() {
  return {.steps = 12, .entropy_bound = 1.5f, .confidence_threshold = 2.5f, .vocabulary = 60, .sampling = {.seed = 1}};
}

Renoise::Settings SettlingRenoise() {
  return {.steps = 30,
          .entropy_bound = 3.0f,
          .temperature_min = 0.1f,
          .temperature_max = 0.3f,
          .confidence_threshold = 0.4f,
          .vocabulary = 60,
          .sampling = {.seed = 2}};
}

DecodedAnswer DecodeByDefinition(const TinyGemma& model, const std::vector<TokenId>& prompt, const Renoise::Settings& s,
                                 int32_t blocks) {
  const GemmaReference reference(model);
  std::vector<TokenId> tokens = prompt;
  DecodedAnswer answer;
  uint32_t forward = 0;
  const auto place = [&](size_t i, uint32_t at) {
    return DrawPlace{s.sampling.seed, 0, static_cast<uint32_t>(tokens.size() + i), at};
  };
  const auto noise = [&](size_t i, uint32_t at) {
    return static_cast<TokenId>(std::floor(60.0 * UniformDraw(place(i, at), 0, DrawPurpose::kNoise)));
  };
  for (int32_t block = 0; block < blocks; ++block) {
    std::vector<TokenId> x, last;
    for (size_t i = 0; i < 8; ++i) x.push_back(noise(i, forward));
    Doubles soft;
    for (int32_t left = s.steps; left > 0; --left, ++forward) {
      const double T =
          static_cast<double>(s.temperature_min) +
          (static_cast<double>(s.temperature_max) - static_cast<double>(s.temperature_min)) * left / s.steps;
      const Doubles z = reference.Logits(tokens, x, soft);
      soft = reference.SoftEmbedding(z, T);
      std::vector<double> entropy(8, 0.0);
      std::vector<TokenId> best(8), drawn(8);
      for (size_t i = 0; i < 8; ++i) {
        best[i] = static_cast<TokenId>(std::max_element(z[i].begin(), z[i].end()) - z[i].begin());
        double sum = 0.0, top = -1e300;
        for (const double v : z[i]) sum += std::exp(v / T);
        for (size_t v = 0; v < z[i].size(); ++v) {
          const double p = std::exp(z[i][v] / T) / sum;
          entropy[i] -= p * std::log(p);
          const double score = z[i][v] / T + GumbelDraw(place(i, forward), static_cast<uint32_t>(v));
          if (score > top) top = score, drawn[i] = static_cast<TokenId>(v);
        }
      }
      answer.steps.push_back({x, best});
      const bool sure = std::accumulate(entropy.begin(), entropy.end(), 0.0) / 8.0 < double{s.confidence_threshold};
      const bool stops = best == last && sure;
      last = best;
      if (stops) {
        ++forward;
        break;
      }
      std::vector<size_t> order(8);
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entropy[a] < entropy[b]; });
      double before = 0.0;
      for (const size_t i : order) {
        x[i] = before <= double{s.entropy_bound} ? drawn[i] : noise(i, forward + 1);
        before += entropy[i];
      }
    }
    tokens.insert(tokens.end(), last.begin(), last.end());
  }
  answer.tokens.assign(tokens.begin() + static_cast<ptrdiff_t>(prompt.size()), tokens.end());
  return answer;
}

}  // namespace quicksilver
