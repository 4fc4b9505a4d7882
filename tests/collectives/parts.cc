#include "tests/collectives/parts.h"

#include <bit>
#include <cmath>
#include <random>

namespace quicksilver {
namespace {

uint16_t RoundToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

std::vector<float> PartOf(int rank, size_t elements, uint32_t seed) {
  std::mt19937 random(seed * 131 + static_cast<uint32_t>(rank));
  std::uniform_real_distribution<float> mantissa(-1.0f, 1.0f);
  std::vector<float> part(elements);
  for (float& x : part) x = std::ldexp(mantissa(random), static_cast<int>(random() % 24));
  return part;
}

std::vector<float> SumOfParts(int ranks, size_t elements, uint32_t seed) {
  std::vector<float> sum = PartOf(0, elements, seed);
  for (int other = 1; other < ranks; ++other) {
    const std::vector<float> part = PartOf(other, elements, seed);
    for (size_t i = 0; i < elements; ++i) sum[i] += part[i];
  }
  return sum;
}

std::vector<uint16_t> AsBf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = RoundToBf16(values[i]);
  return bits;
}

}  // namespace quicksilver
