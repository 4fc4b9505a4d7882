#include "common/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

// The vectors that Random123 publishes for philox4x32-10 (kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox(0, 0, 0, 0, 0).w, ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(Philox(~uint64_t{0}, ~0u, ~0u, ~0u, ~0u).w,
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(Philox(0x299f31d0a4093822u, 0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u).w,
              ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(PhiloxTest, EveryPartOfAPlaceCounts) {
  const DrawPlace base = {.seed = 1, .choice = 1, .position = 1, .step = 1};
  std::set<double> draws = {UniformDraw(base, 1, DrawPurpose::kGumbel), UniformDraw(base, 2, DrawPurpose::kGumbel),
                            UniformDraw(base, 1, DrawPurpose::kConfidence)};
  for (DrawPlace place : {DrawPlace{2, 1, 1, 1}, DrawPlace{1, 2, 1, 1}, DrawPlace{1, 1, 2, 1}, DrawPlace{1, 1, 1, 2},
                          DrawPlace{1ull << 32 | 1, 1, 1, 1}}) {
    draws.insert(UniformDraw(place, 1, DrawPurpose::kGumbel));
  }
  EXPECT_EQ(draws.size(), 8u);
  EXPECT_EQ(UniformDraw(base, 1, DrawPurpose::kGumbel), UniformDraw(base, 1, DrawPurpose::kGumbel));
}

TEST(PhiloxTest, DrawsFillTheUnitIntervalEvenly) {
  constexpr int kDraws = 64000, kCells = 64;
  int counts[kCells] = {};
  double sum = 0.0;
  for (uint32_t token = 0; token < kDraws; ++token) {
    const double u = UniformDraw({.seed = 3}, token, DrawPurpose::kGumbel);
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<int>(u * kCells)];
    sum += u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);  // Four deviations of 0.289 / sqrt(64000).
  double chi_square = 0.0;
  for (const int count : counts) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom: once in a thousand seeds, and this seed is fixed.
}

TEST(PortableLogTest, IsWithinOneUnitInTheLastPlace) {
  std::vector<double> arguments = {1.0, 2.0, 0.5, 0x1p-53, 1.0 - 0x1p-53, 1.0 + 0x1p-52, 36.7, M_SQRT2, M_SQRT1_2};
  for (uint32_t token = 0; token < 20000; ++token) {
    const double u = UniformDraw({.seed = 5}, token, DrawPurpose::kGumbel);
    arguments.insert(arguments.end(), {u, 1.0 - u * 0x1p-20, 0.7 + u, 40.0 * u, std::ldexp(u, -50)});
  }
  for (const double x : arguments) {
    const double expected = std::log(x);  // Itself within one unit.
    const double unit = std::abs(std::nextafter(expected, 2.0 * expected) - expected);
    ASSERT_LE(std::abs(PortableLog(x) - expected), 2.0 * unit) << "x = " << x;
  }
}

// Computed once; every processor and device has to find these bits.
TEST(PortableLogTest, KnownBits) {
  EXPECT_EQ(PortableLog(1.0), 0.0);
  EXPECT_EQ(PortableLog(2.0), 0x1.62e42fefa39efp-1);
  EXPECT_EQ(PortableLog(0x1p-53), -0x1.25e4f7b2737fap+5);
  // Here some libraries differ from this, and from each other, in the last bit.
  EXPECT_EQ(PortableLog(0.01), -0x1.26bb1bbb55516p+2);
  EXPECT_EQ(PortableLog(0.18), -0x1.b6fd079fe314ap+0);
  EXPECT_EQ(PortableLog(1.0 - 0x1p-53), -0x1p-53);
}

TEST(PhiloxTest, TheUpperBitsOfADrawAreThoseOfItsFour) {
  const DrawPlace place = {.seed = 11, .choice = 2, .position = 5, .step = 9};
  std::set<uint64_t> lower;
  for (uint32_t token = 0; token < 64; ++token) {
    const double bits = UniformDraw(place, token, DrawPurpose::kGumbel) * 0x1p52 - 0.5;
    const uint64_t whole = static_cast<uint64_t>(bits);
    EXPECT_EQ(whole >> 20, UniformDrawHighWords(place, token / 4, DrawPurpose::kGumbel).w[token % 4]);
    lower.insert(whole & 0xFFFFF);
  }
  EXPECT_GT(lower.size(), 60u);  // Of 2^20 values.
}

TEST(PhiloxTest, NoGumbelDrawExceedsItsBound) {
  EXPECT_LT(-PortableLog(-PortableLog(1.0 - 0x1p-53)), kGumbelDrawMax);
  EXPECT_GT(-PortableLog(-PortableLog(1.0 - 0x1p-53)), kGumbelDrawMax - 0.05);
}

}  // namespace
}  // namespace quicksilver
