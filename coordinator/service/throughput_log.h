#pragma once

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace quicksilver {

/// Adds up what the service does and says, every so often, how fast that was. Pure; its owner guards it.
class ThroughputLog {
 public:
  struct Rates {
    double prompt_tokens_per_second = 0;
    double output_tokens_per_second = 0;
    double prefix_hit_ratio = 0;    ///< Prompt tokens that needed no prefill, of those of ended sequences.
    double tokens_per_forward = 0;  ///< Of one sequence.
  };
  static constexpr absl::Duration kInterval = absl::Seconds(10);

  void AddPrompt(uint64_t tokens) { sums_.prompt_tokens += tokens; }
  void AddOutput(uint64_t tokens, uint64_t forwards) {
    sums_.output_tokens += tokens;
    sums_.forwards += forwards;
  }
  void AddEnd(uint64_t prompt_tokens, uint64_t cached_tokens) {
    sums_.ended_prompt_tokens += prompt_tokens;
    sums_.cached_tokens += cached_tokens;
  }

  /// The rates since the last line, once an interval; nothing while nothing happens.
  std::optional<Rates> Next(absl::Duration now) {
    if (now - since_ < kInterval) return std::nullopt;
    const double seconds = absl::ToDoubleSeconds(now - since_);
    const Sums sums = sums_;
    sums_ = {};
    since_ = now;
    if (sums.prompt_tokens == 0 && sums.forwards == 0) return std::nullopt;
    const auto ratio = [](uint64_t a, uint64_t b) {
      return b == 0 ? 0.0 : static_cast<double>(a) / static_cast<double>(b);
    };
    return Rates{static_cast<double>(sums.prompt_tokens) / seconds, static_cast<double>(sums.output_tokens) / seconds,
                 ratio(sums.cached_tokens, sums.ended_prompt_tokens), ratio(sums.output_tokens, sums.forwards)};
  }

 private:
  struct Sums {
    uint64_t prompt_tokens = 0;
    uint64_t output_tokens = 0;
    uint64_t forwards = 0;
    uint64_t ended_prompt_tokens = 0;
    uint64_t cached_tokens = 0;
  };
  Sums sums_;
  absl::Duration since_ = absl::ZeroDuration();
};

}  // namespace quicksilver
