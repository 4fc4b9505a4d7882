#include "worker/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/allocations.h"

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string ErrorOf(const std::string& header, uint64_t data_bytes) {
  const auto parsed = ParseSafetensorsHeader("a.safetensors", header, data_bytes);
  return parsed.ok() ? "accepted" : std::string(parsed.status().message());
}

constexpr char kTwo[] = R"({"__metadata__":{"format":"pt"},
    "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
    "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )";

TEST(SafetensorsTest, ReadsTensorsByName) {
  const auto parsed = ParseSafetensorsHeader("a.safetensors", kTwo, 16);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->size(), 2u);
  EXPECT_EQ((*parsed)[0].name, "a");
  EXPECT_EQ((*parsed)[0].type, StoredType::kF32);
  EXPECT_EQ((*parsed)[0].bytes, 4u);
  EXPECT_EQ((*parsed)[1].name, "b");
  EXPECT_EQ((*parsed)[1].offset, 4u);
  EXPECT_THAT((*parsed)[1].shape, ElementsAre(2, 3));
}

TEST(SafetensorsTest, AcceptsEmptyFilesAndEmptyTensors) {
  EXPECT_EQ(ErrorOf("{}", 0), "accepted");
  EXPECT_EQ(ErrorOf(R"({"e":{"dtype":"F16","shape":[0,4],"data_offsets":[0,0]}})", 0), "accepted");
}

TEST(SafetensorsTest, EveryProperPrefixOfAHeaderIsRefused) {
  const std::string header(kTwo, std::string(kTwo).find_last_of('}'));
  for (size_t length = 0; length <= header.size(); ++length) {
    EXPECT_THAT(ErrorOf(header.substr(0, length), 16), StartsWith("a.safetensors: ")) << length;
  }
}

struct BadHeader {
  const char* header;
  uint64_t data_bytes;
  const char* why;
};

class BadHeaderTest : public testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefusedInOneLineThatNamesFileAndFault) {
  const std::string error = ErrorOf(GetParam().header, GetParam().data_bytes);
  EXPECT_THAT(error, AllOf(StartsWith("a.safetensors: "), HasSubstr(GetParam().why)));
  EXPECT_EQ(error.find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    Faults, BadHeaderTest,
    testing::Values(
        BadHeader{"", 0, "expected JSON"}, BadHeader{"[]", 0, "expected an object, found an array"},
        BadHeader{"{} {}", 0, "expected JSON"}, BadHeader{"null", 0, "found null"},
        BadHeader{R"({"a":3})", 0, "tensor 'a': expected an object, found 3"},
        BadHeader{R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4, "found no dtype"},
        BadHeader{R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "found no shape"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[]}})", 4, "found no data_offsets"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}})", 4, "found 'x'"},
        BadHeader{R"({"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4, "a second 'dtype'"},
        BadHeader{R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", 4,
                  "tensor 'a': expected dtype F32, BF16 or F16, found F8_E4M3"},
        BadHeader{R"({"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})", 8, "found I64"},
        BadHeader{R"({"a":{"dtype":7,"shape":[],"data_offsets":[0,8]}})", 8, "expected the name of a type, found 7"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "found -1"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "non-negative integers"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "found an array"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4, "found 92233"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", 4, "at most 8 dim"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", 4, "overflows"},
        BadHeader{R"({"a":{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "overflows"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "expected 8 bytes, found 4"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[4,0]}})", 4, "begin <= end, found [4, 0]"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0]}})", 4, "found [0]"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4,8]}})", 4, "data_offsets of two"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}})", 8, "found 4 (hole)"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 8, "expected 4 bytes of data"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "found its end at 8"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[18446744073709551612,18446744073709551616]}})", 4,
                  "non-negative integers"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
                      "b":{"dtype":"F32","shape":[],"data_offsets":[2,6]}})",
                  6,
                  "tensor 'b': expected it to begin at byte 4 of the data, where the one before ends, found 2 (over"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
                      "b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}})",
                  12,
                  "tensor 'b': expected it to begin at byte 4 of the data, where the one before ends, found 8 (hole)"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
                      "a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}})",
                  8, "tensor 'a': expected once, found twice"},
        BadHeader{R"({"__metadata__":{},"__metadata__":{}})", 0, "found two"},
        BadHeader{R"({"__metadata__":{"a":1}})", 0, "__metadata__: expected a string, found 1"},
        BadHeader{R"({"":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4, "found one of 0"},
        BadHeader{"{\"a\nb\":1}", 0, "expected JSON"}, BadHeader{"{\"\xff\":1}", 0, "expected JSON"}));

TEST(SafetensorsTest, NamesInMessagesAreShortAndPrintable) {
  const std::string error = ErrorOf(absl::StrCat("{\"", R"(\n\u001b[31m)", std::string(400, 'x'), "\":3}"), 0);
  EXPECT_THAT(error, HasSubstr("\\n"));
  EXPECT_EQ(error.find('\n'), std::string::npos);
  EXPECT_EQ(error.find('\x1b'), std::string::npos);
  EXPECT_LT(error.size(), 300u);
}

TEST(SafetensorsTest, LongNamesAndManyTensorsAreRefused) {
  EXPECT_THAT(ErrorOf(absl::StrCat("{\"", std::string(513, 'x'), "\":{}}"), 0), HasSubstr("1 to 512 bytes"));
  std::string header = "{";
  for (size_t i = 0; i <= kSafetensorsTensorsMax; ++i) {
    absl::StrAppend(&header, "\"", i, "\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},");
  }
  header.back() = '}';
  EXPECT_THAT(ErrorOf(header, 0), HasSubstr("at most 262144 tensors"));
}

// A hostile header must not make the parser ask for memory out of proportion.
TEST(SafetensorsTest, NoAllocationIsLargerThanTwiceTheHeader) {
  const std::string nested(1 << 20, '[');
  std::string many = "{";
  for (int i = 0; i < 50'000; ++i)
    absl::StrAppend(&many, "\"", i, R"(":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)");
  many.back() = '}';
  const std::string wide = absl::StrCat(R"({"a":{"dtype":"F32","shape":[)", std::string(1 << 20, '1'), "]}}");
  const std::string long_name = absl::StrCat("{\"", std::string(1 << 20, 'x'), "\":{}}");
  for (const std::string& header : {nested, many, wide, long_name}) {
    largest_allocation = 0;
    EXPECT_NE(ErrorOf(header, 4), "accepted");
    EXPECT_LE(largest_allocation.load(), 2 * header.size());
  }
}

}  // namespace
}  // namespace quicksilver
