#include "common/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "common/utf8.h"

namespace quicksilver {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string Code(std::string_view text) {
  json value;
  const std::optional<JsonError> error = ParseJson(text, {}, value);
  return error ? error->code : "";
}

json Parsed(std::string_view text) {
  json value;
  const std::optional<JsonError> error = ParseJson(text, {}, value);
  EXPECT_FALSE(error) << error->message;
  return value;
}

TEST(ParseJsonTest, BuildsEveryKindOfValue) {
  EXPECT_EQ(Parsed(R"( {"a":[1,-2,3.5,true,false,null,"x\u00e9\n",{}],"b":{"c":[[]]}} )"),
            json({{"a", {1, -2, 3.5, true, false, nullptr, "x\xC3\xA9\n", json::object()}},
                  {"b", {{"c", {json::array()}}}}}));
  EXPECT_EQ(Parsed("9223372036854775807"), json(INT64_MAX));
  EXPECT_EQ(Parsed("-9223372036854775808"), json(INT64_MIN));
  EXPECT_EQ(Parsed("[]"), json::array());
}

TEST(ParseJsonTest, ARepeatedKeyIsAnErrorWhereKeysStandOnce) {
  json value;
  const std::optional<JsonError> error = ParseJson(R"({"a":{"b":1},"c":{"b":2,"b":3}})", {.keys_once = true}, value);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, "invalid_json");
  EXPECT_THAT(error->message, HasSubstr("\"b\" appears twice"));
  EXPECT_FALSE(ParseJson(R"({"a":{"b":1},"c":{"b":2}})", {.keys_once = true}, value));
}

TEST(ParseJsonTest, TheLastOfEqualKeysWins) {
  EXPECT_EQ(Parsed(R"({"a":[1,2],"b":0,"a":{"c":3}})"), json({{"a", {{"c", 3}}}, {"b", 0}}));
}

TEST(ParseJsonTest, SkipsAByteOrderMark) { EXPECT_EQ(Parsed("\xEF\xBB\xBF{\"a\":1}"), json({{"a", 1}})); }

TEST(ParseJsonTest, AcceptsAnEscapedNulInAString) {
  EXPECT_EQ(Parsed(R"("a\u0000b")").get<std::string>(), std::string("a\0b", 3));
}

TEST(ParseJsonTest, NamesTheKindOfFault) {
  for (const char* text : {"",        " ",       "{",   "[1,]",      "{\"a\":}",    "{a:1}",       "nul",
                           "01",      "+1",      "1 2", "[1",        "\"a",         "'a'",         "\"\t\"",
                           R"("\x")", "// c\n1", "NaN", "-Infinity", R"("\ud800")", R"("\udc00")", R"("\ud800\u0041")",
                           "\xEF\xBB"}) {
    EXPECT_EQ(Code(text), std::string_view(text) == "\xEF\xBB" ? "invalid_utf8" : "invalid_json") << text;
  }
  EXPECT_EQ(Code(std::string_view("{\"a\":\"\0\"}", 9)), "invalid_utf8");
  EXPECT_EQ(Code(std::string_view("1\0", 2)), "invalid_utf8");
  for (const char* text :
       {"\"\xff\"", "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"\xF4\x90\x80\x80\"", "\"\xE2\x82\"", "\"\x80\""}) {
    EXPECT_EQ(Code(text), "invalid_utf8") << text;
  }
  for (const char* text : {"1e999", "[-1e999]", "9223372036854775808", "18446744073709551616", "-9223372036854775809",
                           "{\"a\":123456789012345678901234567890}"}) {
    EXPECT_EQ(Code(text), "invalid_value") << text;
  }
}

TEST(ParseJsonTest, SaysWhereTheFaultIs) {
  json value;
  EXPECT_EQ(ParseJson("{\"a\":\"\xff\"}", {}, value)->byte, 6);
  EXPECT_EQ(ParseJson("{\"abc\" 1}", {}, value)->byte, 7);
  EXPECT_THAT(ParseJson("{\"abc\" 1}", {}, value)->message, HasSubstr("at byte 7"));
  EXPECT_EQ(ParseJson("[1,99999999999999999999]", {}, value)->byte, 24);
}

// An error goes into logs and replies: it must not carry what the client wrote.
TEST(ParseJsonTest, ErrorsDoNotRepeatTheText) {
  json value;
  for (const char* text : {"{\"secret\": canary}", "[canary]", "{\"a\" canary", "\"canary"}) {
    EXPECT_THAT(ParseJson(text, {}, value)->message, testing::Not(HasSubstr("canary"))) << text;
  }
}

TEST(ParseJsonTest, BoundsDepth) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(Code(nested(64)), "");
  EXPECT_EQ(Code(nested(65)), "invalid_json");
  EXPECT_EQ(Code(std::string(100'000, '[')), "invalid_json");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_EQ(Code(objects), "invalid_json");
}

TEST(ParseJsonTest, BoundsNumbersItemsAndSize) {
  EXPECT_EQ(Code("0." + std::string(62, '1')), "");
  EXPECT_EQ(Code("0." + std::string(63, '1')), "invalid_json");
  EXPECT_EQ(Code(std::string(65, '1')), "invalid_json");
  json value;
  EXPECT_FALSE(ParseJson("[1,2,3]", {.items_max = 3}, value));
  EXPECT_EQ(ParseJson("[1,2,3,4]", {.items_max = 3}, value)->code, "invalid_json");
  EXPECT_EQ(ParseJson("{\"a\":1,\"b\":2}", {.items_max = 1}, value)->code, "invalid_json");
  EXPECT_EQ(ParseJson("[1,2,3]", {.bytes_max = 6}, value)->code, "invalid_json");
}

TEST(FindInvalidUtf8Test, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8("plain text of more than eight bytes"), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("\xD9\x85\xD8\xB1\xF0\x9F\x98\x80 and more text"), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("12345678\xC3"), 8);
  EXPECT_EQ(FindInvalidUtf8("1234567\xF0\x9F\x98"), 7);
}

}  // namespace
}  // namespace quicksilver
