#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace quicksilver::simulation {

/// A hash of its arguments' order and values (SplitMix64's finaliser, folded).
inline uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
template <typename... Rest>
uint64_t Mix(uint64_t x, uint64_t y, Rest... rest) {
  return Mix(Mix(x) ^ (y * 0xD6E8FEB86659FD93u), rest...);
}

/// In [0, 1).
inline double UnitOf(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

/// The draws of one seed. Copies go their own ways.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(Mix(seed)) {}

  uint64_t Next() { return Mix(state_++); }
  /// In [0, bound); bound >= 1.
  uint64_t Below(uint64_t bound) { return Next() % bound; }
  /// In [least, most].
  int64_t Between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(Below(static_cast<uint64_t>(most - least + 1)));
  }
  bool Chance(double probability) { return UnitOf(Next()) < probability; }
  absl::Duration Between(absl::Duration least, absl::Duration most) { return least + (most - least) * UnitOf(Next()); }

 private:
  uint64_t state_;
};

}  // namespace quicksilver::simulation
