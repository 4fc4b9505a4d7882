#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace quicksilver {
namespace {

float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }

TEST(NumberTypesTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(__nv_bfloat16(1.0f).__x, 0x3F80);
  EXPECT_EQ(__nv_bfloat16(FromBits(0x3F808000)).__x, 0x3F80);  // A tie, to even.
  EXPECT_EQ(__nv_bfloat16(FromBits(0x3F818000)).__x, 0x3F82);
  EXPECT_EQ(__nv_bfloat16(FromBits(0x3F808001)).__x, 0x3F81);
  EXPECT_EQ(__nv_bfloat16(std::numeric_limits<float>::max()).__x, 0x7F80);
  EXPECT_EQ(__nv_bfloat16(-0.0f).__x, 0x8000);
  EXPECT_EQ(__nv_bfloat16(FromBits(0xFFC12345)).__x, 0x7FFF) << "the one NaN of the device";
  EXPECT_EQ(__nv_bfloat16(FromBits(0x7F800001)).__x, 0x7FFF);
}

TEST(NumberTypesTest, E4m3KeepsItsOwnValues) {
  for (int bits = 0; bits < 256; ++bits) {
    __nv_fp8_e4m3 value;
    value.__x = static_cast<unsigned char>(bits);
    const float widened = static_cast<float>(value);
    if ((bits & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(widened));
    } else {
      EXPECT_EQ(__nv_fp8_e4m3(widened).__x, bits) << widened;
    }
  }
}

TEST(NumberTypesTest, E4m3RoundsToNearestEvenAndSaturates) {
  const auto next = [](unsigned char bits) {
    __nv_fp8_e4m3 value;
    value.__x = bits;
    return static_cast<float>(value);
  };
  for (unsigned char bits = 0; bits < 0x7E; ++bits) {
    const float low = next(bits);
    const float high = next(static_cast<unsigned char>(bits + 1));
    const float middle = (low + high) / 2;  // Exact.
    EXPECT_EQ(__nv_fp8_e4m3(middle).__x, bits % 2 == 0 ? bits : bits + 1) << middle;
    EXPECT_EQ(__nv_fp8_e4m3(std::nextafter(middle, 0.0f)).__x, bits);
    EXPECT_EQ(__nv_fp8_e4m3(std::nextafter(middle, 1e9f)).__x, bits + 1);
  }
  EXPECT_EQ(next(0x7E), 448.0f);
  EXPECT_EQ(next(0x01), 0x1p-9f);
  EXPECT_EQ(__nv_fp8_e4m3(1e30f).__x, 0x7E);
  EXPECT_EQ(__nv_fp8_e4m3(-std::numeric_limits<float>::infinity()).__x, 0xFE);
  EXPECT_EQ(__nv_cvt_float_to_fp8(465.0f, __NV_NOSAT, __NV_E4M3), 0x7F);
  EXPECT_EQ(__nv_cvt_float_to_fp8(464.0f, __NV_NOSAT, __NV_E4M3), 0x7E);
}

}  // namespace
}  // namespace quicksilver
