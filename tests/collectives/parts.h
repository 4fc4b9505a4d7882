#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quicksilver {

/// Magnitudes so far apart that another order of additions gives other bits.
std::vector<float> PartOf(int rank, size_t elements, uint32_t seed);
/// The sum of the parts of all ranks, in rank order.
std::vector<float> SumOfParts(int ranks, size_t elements, uint32_t seed);
std::vector<uint16_t> AsBf16(const std::vector<float>& values);

}  // namespace quicksilver
