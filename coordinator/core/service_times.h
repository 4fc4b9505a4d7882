#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/time/time.h"

namespace quicksilver {

/// How long sequences of a model hold their places: what waits are estimated from.
class ServiceTimes {
 public:
  /// A sequence that was asked for `max_tokens` has ended, `held` after it was placed.
  void Add(absl::Duration held, uint32_t prompt_tokens, uint32_t max_tokens, absl::Duration now) {
    const double seconds = absl::ToDoubleSeconds(held);
    mean_ = mean_ == 0 ? seconds : 0.9 * mean_ + 0.1 * seconds;
    least_ = Less(least_, {.seconds = seconds, .prompt_tokens = prompt_tokens, .max_tokens = max_tokens});
    last_ = now;
    if (++count_ % kWindow != 0) return;
    before_ = least_;
    least_ = Least{};
  }

  /// Moving average. Zero before the first.
  double mean_seconds() const { return mean_; }
  /// A time in which none of the last ones was done by far. Zero where they tell nothing: too few were seen, the last
  /// one is long ago, or the request is smaller than all of them.
  absl::Duration TooShort(uint32_t prompt_tokens, uint32_t max_tokens, absl::Duration now) const {
    const Least least = Less(least_, before_);
    const bool smaller = prompt_tokens < least.prompt_tokens || max_tokens < least.max_tokens;
    if (count_ < kWindow || smaller || now - last_ > kStale) return absl::ZeroDuration();
    return absl::Seconds(0.5 * least.seconds);
  }

 private:
  static constexpr uint64_t kWindow = 32;
  // Else those who are all refused would never see that it goes faster again.
  static constexpr absl::Duration kStale = absl::Seconds(60);

  // Each by itself.
  struct Least {
    double seconds = std::numeric_limits<double>::infinity();
    uint32_t prompt_tokens = std::numeric_limits<uint32_t>::max();
    uint32_t max_tokens = std::numeric_limits<uint32_t>::max();
  };
  static Least Less(const Least& a, const Least& b) {
    return {.seconds = std::min(a.seconds, b.seconds),
            .prompt_tokens = std::min(a.prompt_tokens, b.prompt_tokens),
            .max_tokens = std::min(a.max_tokens, b.max_tokens)};
  }

  double mean_ = 0;
  Least least_, before_;  // Of this window and of the one before it.
  absl::Duration last_;
  uint64_t count_ = 0;
};

}  // namespace quicksilver
