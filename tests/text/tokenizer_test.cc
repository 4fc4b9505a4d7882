#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/text/model_file.h"
#include "coordinator/text/regex.h"
#include "coordinator/text/text.h"
#include "gmock/gmock.h"
#include "tests/text/tiny_model.h"

namespace quicksilver {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr size_t kMany = 1 << 20;

std::vector<int32_t> Ids(const TextModel& model, std::string_view text) {
  const auto ids = model.Encode(text, kMany);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(std::vector<int32_t>{});
}

std::vector<std::string> Pieces(const std::string& pattern, std::string_view text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  RegexScratch scratch;
  std::vector<std::string> pieces;
  EXPECT_TRUE(regex
                  ->ForEachPiece(text, scratch,
                                 [&](std::string_view piece, bool is_match) {
                                   pieces.push_back((is_match ? "+" : "-") + std::string(piece));
                                   return absl::OkStatus();
                                 })
                  .ok());
  return pieces;
}

std::string LoadError(const json& tokenizer, const json& config = json::object()) {
  ModelDirectory directory;
  directory.Write("tokenizer.json", tokenizer).Write("tokenizer_config.json", config);
  const auto model = directory.Load();
  EXPECT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << model.status();
  const std::string message(model.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_THAT(message, HasSubstr(directory.path() + "/tokenizer"));
  return message;
}

TEST(TokenizerTest, MergesTheBestRankFirstThenTheLeftmost) {
  const auto model = LoadTiny(TinyTokenizer());
  EXPECT_THAT(Ids(*model, "abc"), ElementsAre(257));
  EXPECT_THAT(Ids(*model, "aabcab"), ElementsAre('a', 257, 256));
  EXPECT_THAT(Ids(*model, ""), IsEmpty());
}

TEST(TokenizerTest, TextThatSpellsASpecialTokenStaysText) {
  const auto model = LoadTiny(TinyTokenizer());
  EXPECT_THAT(Ids(*model, "<mask>"), ElementsAre('<', 'm', 'a', 's', 'k', '>'));
}

// Even a vocabulary whose merges, or whole words, spell a special token must not give its id.
TEST(TokenizerTest, NeitherMergesNorWholeWordsMakeASpecialToken) {
  json tokenizer = TinyTokenizer();
  tokenizer["added_tokens"].push_back(Added(257, "abc"));
  tokenizer["model"]["ignore_merges"] = true;
  const auto model = LoadTiny(tokenizer);
  EXPECT_THAT(Ids(*model, "abc ab"), ElementsAre(256, 'c', ' ', 256));
  EXPECT_TRUE(model->IsSpecial(257));
}

TEST(TokenizerTest, SpecialnessIsTheUnionOfAllFiles) {
  json tokenizer = TinyTokenizer();
  tokenizer["added_tokens"] = {Added(300, "<s>", false), Added(301, "</s>", false), Added(302, "<mask>", false),
                               Added(303, "<think>", false)};
  ModelDirectory directory;
  directory.Write("tokenizer.json", tokenizer)
      .Write("tokenizer_config.json",
             json{{"bos_token", {{"content", "<s>"}}},
                  {"eos_token", nullptr},
                  {"added_tokens_decoder", {{"301", Added(301, "</s>")}, {"310", Added(310, "<x>")}}}})
      .Write("config.json", json{{"mask_token_id", 302}, {"eos_token_id", {301, 99999}}});
  const auto model = directory.Load();
  ASSERT_TRUE(model.ok()) << model.status();
  for (const int32_t id : {300, 301, 302, 310}) EXPECT_TRUE((*model)->IsSpecial(id)) << id;
  EXPECT_FALSE((*model)->IsSpecial(303));
  EXPECT_FALSE((*model)->IsSpecial(-1));
  EXPECT_FALSE((*model)->IsSpecial(99999));
  EXPECT_THAT(Ids(**model, "<think>"), ElementsAre(303));
  EXPECT_EQ((*model)->FindSpecial("<mask>"), 302);
  EXPECT_EQ((*model)->FindSpecial("<think>"), -1);
  EXPECT_EQ((*model)->TokenBytes(302), "");
  EXPECT_EQ((*model)->TokenBytes(303), "<think>");
  EXPECT_EQ((*model)->TokenBytes(257), "abc");
  EXPECT_EQ((*model)->size(), 311);
  EXPECT_EQ((*model)->digest().size(), 64u);
}

TEST(TokenizerTest, MoreIdsThanTheBoundAreRefusedAndAsManyAreNot) {
  const auto model = LoadTiny(TinyTokenizer());
  EXPECT_TRUE(model->Encode("xyz", 3).ok());
  EXPECT_EQ(model->Encode("xyzw", 3).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(model->Encode("x", 0).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(model->Encode("", 0).ok());
}

// Quadratic merging of one word of 4 MB would take hours; the bound is far above what linear work needs.
TEST(TokenizerTest, OneHugeWordIsRefusedAtOnceOrMergedInLinearithmicTime) {
  const auto model = LoadTiny(TinyTokenizer());
  std::string word;
  while (word.size() < 4 << 20) word += "ab";
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(model->Encode(word, 4096).status().code(), absl::StatusCode::kResourceExhausted);
  const auto refused = std::chrono::steady_clock::now();
  EXPECT_EQ(model->Encode(word, 4 << 20)->size(), word.size() / 2);
  EXPECT_LT(refused - begin, std::chrono::seconds(2));
  EXPECT_LT(std::chrono::steady_clock::now() - refused, std::chrono::seconds(60));
}

TEST(TokenizerTest, InvalidUtf8IsRefused) {
  const auto model = LoadTiny(TinyTokenizer());
  EXPECT_EQ(model->Encode("a\xFF", kMany).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerTest, NormalizationComesBeforeTheBytes) {
  json tokenizer = TinyTokenizer();
  tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  EXPECT_THAT(Ids(*LoadTiny(tokenizer), "e\xCC\x81"), ElementsAre(0xC3, 0xA9));
  EXPECT_THAT(Ids(*LoadTiny(TinyTokenizer()), "e\xCC\x81"), ElementsAre('e', 0xCC, 0x81));
}

TEST(TokenizerTest, AddedTokensTakeWhiteSpaceAlongAndStandAloneWhereTheySaySo) {
  json tokenizer = TinyTokenizer();
  json left = Added(310, "<l>", false);
  left["lstrip"] = true;
  json right = Added(311, "<r>", false);
  right["rstrip"] = true;
  json word = Added(312, "word", false);
  word["single_word"] = true;
  for (const json& token : {left, right, word}) tokenizer["added_tokens"].push_back(token);
  const auto model = LoadTiny(tokenizer);
  EXPECT_THAT(Ids(*model, "x \n<l> y"), ElementsAre('x', 310, ' ', 'y'));
  EXPECT_THAT(Ids(*model, "x <r> \ty"), ElementsAre('x', ' ', 311, 'y'));
  EXPECT_THAT(Ids(*model, "word,"), ElementsAre(312, ','));
  EXPECT_THAT(Ids(*model, "\xC3\xA9word"), ElementsAre(0xC3, 0xA9, 'w', 'o', 'r', 'd'));
}

TEST(TokenizerTest, EveryThreadMayEncode) {
  const auto model = LoadTiny(TinyTokenizer());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) EXPECT_THAT(Ids(*model, "abc ab"), ElementsAre(257, ' ', 256));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(RegexTest, ReadsOnigurumaSpacesAndWordsNotPcres) {
  // U+180E is no white space; a combining mark is part of a word.
  EXPECT_THAT(Pieces("\\s+", "a\xE1\xA0\x8E\xC2\x85 b"), ElementsAre("-a\xE1\xA0\x8E", "+\xC2\x85 ", "-b"));
  EXPECT_THAT(Pieces("\\w+", "e\xCC\x81!"), ElementsAre("+e\xCC\x81", "-!"));
  EXPECT_THAT(Pieces("[^\\s\\w]", "a! b"), ElementsAre("-a", "+!", "- b"));
  EXPECT_THAT(Pieces("\\u0061\\v", "xa\x0B"), ElementsAre("-x", "+a\x0B"));
}

TEST(RegexTest, EmptyMatchesCutTheTextAndEnd) {
  EXPECT_THAT(Pieces("(?=b)", "abab"), ElementsAre("-a", "-ba", "-b"));
  EXPECT_THAT(Pieces("x*", "axxb"), ElementsAre("-a", "+xx", "-b"));
}

TEST(RegexTest, WhatTheDialectsReadDifferentlyIsRefused) {
  for (const char* pattern : {"\\p{N}{1,3}+", "\\h", "\\bword", "[a[b]]", "[a&&b]", "(?m:.)", "(?s).", "[\\s-x]",
                              "[^\\S]", "\\u12", "a\\", "(", "\\p{Nope}"}) {
    const auto regex = Regex::Compile(pattern);
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
  }
}

TEST(RegexTest, ARunawayPatternIsAnErrorNotAHang) {
  const auto regex = Regex::Compile("(?:a+)+$");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  const absl::Status status =
      regex->ForEachPiece(std::string(40, 'a') + "b", scratch, [](std::string_view, bool) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST(ModelJsonTest, RefusesDeepNestingAndRepeatedKeys) {
  const auto error = [](const std::string& text) { return std::string(ParseModelJson(text).status().message()); };
  EXPECT_THAT(error(std::string(100'000, '[')), HasSubstr("deeper than 32"));
  EXPECT_THAT(error(R"({"a":{"b":1,"b":2}})"), HasSubstr("\"b\" appears twice"));
  EXPECT_THAT(error("{\"a\": tru}"), HasSubstr("Invalid JSON at byte"));
  EXPECT_THAT(error("\"\xFF\""), HasSubstr("UTF-8"));
  EXPECT_EQ(ParseModelJson(R"({"a":[1,{"b":null}],"c":"d"})").value().dump(), R"({"a":[1,{"b":null}],"c":"d"})");
}

TEST(LoadTest, AMissingTokenizerIsNotFound) {
  const ModelDirectory directory;
  const auto model = directory.Load();
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr(directory.path() + "/tokenizer.json"));
}

// One change to the tiny tokenizer each, as a JSON patch, and what the error must name.
TEST(LoadTest, NamesWhatIsUnsupportedOrInconsistent) {
  const auto patched = [](const char* path, const json& value) {
    json tokenizer = TinyTokenizer();
    tokenizer[json::json_pointer(path)] = value;
    return LoadError(tokenizer);
  };
  EXPECT_THAT(patched("/model/type", "Unigram"), HasSubstr("\"Unigram\""));
  EXPECT_THAT(patched("/model/byte_fallback", true), HasSubstr("byte_fallback"));
  EXPECT_THAT(patched("/model/dropout", 0.1), HasSubstr("dropout"));
  EXPECT_THAT(patched("/model/end_of_word_suffix", "</w>"), HasSubstr("end_of_word_suffix"));
  EXPECT_THAT(patched("/model/vocab/x1", -4), HasSubstr("-4"));
  EXPECT_THAT(patched("/model/vocab/x1", 1 << 20), HasSubstr("1048576"));
  EXPECT_THAT(patched("/model/vocab/x1", 9223372036854775808u), HasSubstr("beyond 64 bits"));
  EXPECT_THAT(patched("/model/vocab/x1", 1.5), HasSubstr("1.5"));
  EXPECT_THAT(patched("/model/vocab/x1", 97), HasSubstr("id 97 stands for two tokens"));
  EXPECT_THAT(patched("/model/merges/0", "a nosuch"), HasSubstr("nosuch"));
  EXPECT_THAT(patched("/model/merges/0", "a b c"), HasSubstr("not a pair"));
  EXPECT_THAT(patched("/model/merges/0", 7), HasSubstr("not a pair"));
  EXPECT_THAT(patched("/model/merges/0", json::array({"c", "c"})), HasSubstr("unknown token \"cc\""));
  EXPECT_THAT(patched("/model/merges", nullptr), HasSubstr("merges"));
  EXPECT_THAT(patched("/model", 5), HasSubstr("no model"));
  EXPECT_THAT(patched("/normalizer", {{"type", "Lowercase"}}), HasSubstr("Lowercase"));
  EXPECT_THAT(patched("/pre_tokenizer/type", "Metaspace"), HasSubstr("Metaspace"));
  EXPECT_THAT(patched("/pre_tokenizer", nullptr), HasSubstr("byte-level"));
  EXPECT_THAT(patched("/pre_tokenizer/use_regex", 3), HasSubstr("use_regex"));
  EXPECT_THAT(patched("/decoder", {{"type", "WordPiece"}}), HasSubstr("WordPiece"));
  EXPECT_THAT(patched("/decoder", nullptr), HasSubstr("decoder"));
  EXPECT_THAT(patched("/added_tokens/0/id", 301), HasSubstr("301"));
  EXPECT_THAT(patched("/added_tokens/0/content", "abc"), HasSubstr("two ids, 257 and 300"));
  EXPECT_THAT(patched("/added_tokens/0/special", "yes"), HasSubstr("special is not a boolean"));
  EXPECT_THAT(patched("/added_tokens/0/content", ""), HasSubstr("empty"));
  EXPECT_THAT(patched("/added_tokens", 1), HasSubstr("added_tokens"));
}

TEST(LoadTest, AVocabularyWithoutAByteIsRefused) {
  json tokenizer = TinyTokenizer();
  tokenizer["model"]["vocab"].erase("c");
  tokenizer["model"]["merges"] = json::array();
  EXPECT_THAT(LoadError(tokenizer), HasSubstr("lacks byte 99"));
}

TEST(LoadTest, ASpecialTokenTheVocabularyLacksIsRefused) {
  EXPECT_THAT(LoadError(TinyTokenizer(), {{"mask_token", "<nomask>"}}), HasSubstr("mask_token \"<nomask>\""));
  LoadTiny(TinyTokenizer(), {{"cls_token", "[CLS]"}, {"additional_special_tokens", {"[gone]"}}});  // Left over.
  EXPECT_THAT(LoadError(TinyTokenizer(), {{"added_tokens_decoder", {{"x7", Added(7, "q")}}}}), HasSubstr("x7"));
  EXPECT_THAT(LoadError(TinyTokenizer(), {{"bos_token", "a"}}), HasSubstr("special and also a byte"));
}

TEST(LoadTest, FilesThatAreNotJsonAreNamed) {
  ModelDirectory directory;
  directory.Write("tokenizer.json", std::string("{\"model\": "));
  EXPECT_THAT(std::string(directory.Load().status().message()), HasSubstr("tokenizer.json: "));
  directory.Write("tokenizer.json", TinyTokenizer()).Write("tokenizer_config.json", std::string("[]"));
  EXPECT_THAT(std::string(directory.Load().status().message()), HasSubstr("tokenizer_config.json: "));
  directory.Write("tokenizer_config.json", json::object()).Write("chat_template.jinja", std::string("a\n{% nope %}"));
  EXPECT_THAT(std::string(directory.Load().status().message()), HasSubstr("chat_template.jinja: line 2: "));
}

TEST(LoadTest, TheDemoModelLoads) {
  const auto model = TextModel::Load("models/demo");
  ASSERT_TRUE(model.ok()) << model.status();
  const int32_t mask = (*model)->FindSpecial("<|MASK|>");
  ASSERT_GE(mask, 0);
  EXPECT_LT(mask, (*model)->size());
  const auto ids = (*model)->EncodeChat({{.role = "user", .content = "hi <|MASK|>"}}, 100);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->front(), (*model)->FindSpecial("<|im_start|>"));
  EXPECT_EQ(std::count(ids->begin(), ids->end(), mask), 0);
}

}  // namespace
}  // namespace quicksilver
