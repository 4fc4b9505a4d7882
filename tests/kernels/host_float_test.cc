#include "kernels/host_float.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace quicksilver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(HostFloatTest, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(value))));
    } else {
      EXPECT_EQ(FloatToBf16(value), bits);
    }
  }
}

TEST(HostFloatTest, Bf16RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-9f), 1.0f);
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-8f), 1.0f);                // A tie; 1 is even.
  EXPECT_EQ(RoundToBf16(1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);  // A tie; up to the even one.
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-8f + 0x1p-20f), 1.0f + 0x1p-7f);
  EXPECT_EQ(RoundToBf16(-1.0f - 3 * 0x1p-8f), -1.0f - 0x1p-6f);
  EXPECT_EQ(RoundToBf16(3.4e38f), kInfinity);
  EXPECT_EQ(RoundToBf16(-kInfinity), -kInfinity);
  EXPECT_TRUE(std::isnan(RoundToBf16(FloatFromBits(0x7F800001u))));  // Only low bits set.
}

TEST(HostFloatTest, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = F16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value))));
    } else {
      EXPECT_EQ(FloatToF16(value), bits) << value;
    }
  }
}

TEST(HostFloatTest, KnownF16Numbers) {
  EXPECT_EQ(F16ToFloat(0x3C00), 1.0f);
  EXPECT_EQ(F16ToFloat(0xC000), -2.0f);
  EXPECT_EQ(F16ToFloat(0x7BFF), 65504.0f);
  EXPECT_EQ(F16ToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToFloat(0xFC00), -kInfinity);
}

TEST(HostFloatTest, F16RoundsToTheNearerNeighbour) {
  std::mt19937 generator(1);
  for (int i = 0; i < 100000; ++i) {
    // All magnitudes that f16 has, subnormal ones included.
    const float value =
        std::ldexp(1.0f + static_cast<float>(generator() >> 9) * 0x1p-23f, static_cast<int>(generator() % 40) - 25);
    const uint16_t half = FloatToF16(value);
    if (half >= 0x7C00) {
      EXPECT_GE(value, 65520.0f);
      continue;
    }
    const double error = std::abs(double{F16ToFloat(half)} - value);
    const double above = std::abs(double{F16ToFloat(static_cast<uint16_t>(half + 1))} - value);
    EXPECT_LE(error, above) << value;
    if (half > 0) {
      const double below = std::abs(double{F16ToFloat(static_cast<uint16_t>(half - 1))} - value);
      EXPECT_LE(error, below) << value;
      EXPECT_TRUE(error < std::min(above, below) || half % 2 == 0) << value;
    }
  }
}

}  // namespace
}  // namespace quicksilver
