#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/model_group.h"

namespace quicksilver {

// The recorded numbers are float32's own noise (6e-5) away from exact ones; ours add in another order.
inline constexpr double kGoldenLogitErrorMax = 1e-3;

// Of all recorded checkpoints, some of which do not state it.
inline constexpr TokenId kGoldenMaskId = 250;

/// Pages from `first` on for so many positions.
inline std::vector<int32_t> PagesFor(size_t positions, int32_t page_size, int32_t first = 0) {
  std::vector<int32_t> pages((positions + page_size - 1) / page_size);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = first + static_cast<int32_t>(i);
  return pages;
}

inline double MaxError(const HostRows& a, const HostRows& b) {
  double error = a.values.size() == b.values.size() ? 0.0 : INFINITY;
  for (size_t i = 0; i < std::min(a.values.size(), b.values.size()); ++i) {
    error = std::max(error, std::abs(double{a.values[i]} - double{b.values[i]}));
  }
  return error;
}

}  // namespace quicksilver
