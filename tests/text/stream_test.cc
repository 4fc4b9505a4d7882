
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "coordinator/text/marked_text.h"
#include "coordinator/text/text.h"
#include "coordinator/text/utf8.h"
#include "gmock/gmock.h"
#include "tests/text/fuzz_inputs.h"
#include "tests/text/tiny_model.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string Replaced(std::string_view bytes) {
  std::string text;
  EXPECT_EQ(AppendReplacingInvalid(bytes, /*final=*/true, text), bytes.size());
  return text;
}

// What Python's bytes.decode("utf-8", errors="replace") gives; R stands for U+FFFD.
TEST(Utf8Test, EachMaximalIllFormedRunBecomesOneReplacement) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(Replaced("caf\xC3\xA9"), "caf\xC3\xA9");
  EXPECT_EQ(Replaced("\xF0\x9F\x98"), r);
  EXPECT_EQ(Replaced("\xF0\x9F\x98!"), r + "!");
  EXPECT_EQ(Replaced("\xE2\x82\xE2\x82\xAC"), r + "\xE2\x82\xAC");
  EXPECT_EQ(Replaced("\xE0\x80\x80"), r + r + r);
  EXPECT_EQ(Replaced("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(Replaced("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(Replaced("\xC0\xAF\x80\xFF"), r + r + r + r);
}

TEST(Utf8Test, ValidityRejectsSurrogatesOverlongFormsAndTruncation) {
  EXPECT_TRUE(IsValidUtf8(std::string_view("\0a\xC3\xA9\xF4\x8F\xBF\xBF", 8)));
  for (const char* bad : {"\xED\xA0\x80", "\xC0\x80", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xC3"}) {
    EXPECT_FALSE(IsValidUtf8(bad));
  }
}

// Ids of the tiny model are bytes, so a random id sequence is a random byte string cut at every byte.
TEST(DetokenizerTest, StreamedPiecesAreTheWholeAndNeverSplitACharacter) {
  const auto model = LoadTiny(TinyTokenizer());
  std::mt19937 random(7);
  const std::string pool = "aZ \xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0\xC0\xF4\x90\xFF\xBF";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    std::string streamed;
    Detokenizer detokenizer(*model);
    for (size_t length = random() % 16; length > 0; --length) {
      // Runs of the pool, so that whole characters occur as well as broken ones.
      const std::string run = pool.substr(random() % pool.size(), 1 + random() % 4);
      for (const char byte : run) {
        const std::string piece = detokenizer.Push(static_cast<unsigned char>(byte));
        EXPECT_TRUE(IsValidUtf8(piece));
        streamed += piece;
      }
      bytes += run;
    }
    EXPECT_EQ(streamed + detokenizer.Finish(), Replaced(bytes));
    EXPECT_EQ(detokenizer.Finish(), "");
  }
}

TEST(DetokenizerTest, HoldsAPartialCharacterBackAndSkipsSpecialTokens) {
  const auto model = LoadTiny(TinyTokenizer());
  Detokenizer detokenizer(*model);
  EXPECT_EQ(detokenizer.Push(257), "abc");
  EXPECT_EQ(detokenizer.Push(0xC3), "");
  EXPECT_EQ(detokenizer.Push(301), "");
  EXPECT_EQ(detokenizer.Push(99999), "");
  EXPECT_EQ(detokenizer.Push(-1), "");
  EXPECT_EQ(detokenizer.Push(0xA9), "\xC3\xA9");
  EXPECT_EQ(detokenizer.Push(0xE2), "");
  EXPECT_EQ(detokenizer.Finish(), "\xEF\xBF\xBD");
}

TEST(StopMatcherTest, TheMatchThatStartsFirstWinsEvenWhenAnotherEndsEarlier) {
  StopMatcher matcher({"bc", "abcd"});
  EXPECT_EQ(matcher.Push("xabc").text, "x");
  const StopMatcher::Output output = matcher.Push("d tail");
  EXPECT_EQ(output.text, "");
  EXPECT_TRUE(output.stopped);
  EXPECT_EQ(matcher.Push("more").text, "");
  EXPECT_TRUE(matcher.Finish().stopped);
}

TEST(StopMatcherTest, ALaterMatchCountsOnceTheEarlierOneFails) {
  StopMatcher matcher({"bc", "abcd"});
  EXPECT_EQ(matcher.Push("abc").text, "");
  const StopMatcher::Output output = matcher.Push("e");
  EXPECT_EQ(output.text, "a");
  EXPECT_TRUE(output.stopped);
}

TEST(StopMatcherTest, AMatchPendingAtTheEndOfTheTextCounts) {
  StopMatcher matcher({"bc", "abcd"});
  EXPECT_EQ(matcher.Push("abc").text, "");
  const StopMatcher::Output output = matcher.Finish();
  EXPECT_EQ(output.text, "a");
  EXPECT_TRUE(output.stopped);
}

TEST(StopMatcherTest, HoldsBackNoMoreThanAPossibleMatchAndReleasesItAtTheEnd) {
  StopMatcher matcher({"\n\nuser:"});
  EXPECT_EQ(matcher.Push("hello\n").text, "hello");
  EXPECT_EQ(matcher.Push("\nus").text, "");
  EXPECT_EQ(matcher.Push("ed\n").text, "\n\nused");
  const StopMatcher::Output output = matcher.Finish();
  EXPECT_EQ(output.text, "\n");
  EXPECT_FALSE(output.stopped);
}

TEST(StopMatcherTest, WithoutStopsEverythingPasses) {
  StopMatcher matcher({""});
  EXPECT_EQ(matcher.Push("abc").text, "abc");
  EXPECT_FALSE(matcher.Finish().stopped);
}

TEST(StopMatcherTest, StreamedOutputIsThatOfTheWholeText) {
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    // Two letters, so that stops overlap themselves and one another.
    std::string input;
    for (size_t length = random() % 24; length > 0; --length) input.push_back("ab"[random() % 2]);
    for (size_t stops = random() % 4; stops > 0; --stops) {
      input.push_back('\xFF');
      for (size_t length = random() % 6; length > 0; --length) input.push_back("ab"[random() % 2]);
    }
    SCOPED_TRACE(input);
    TryAsStopMatcher(input);
  }
}

// 200 KB against stops that almost match everywhere: quadratic work would take minutes.
TEST(StopMatcherTest, LongStopsTakeLinearTime) {
  StopMatcher matcher({std::string(100'000, 'a') + "b", std::string(50'000, 'a') + "c"});
  size_t released = 0;
  for (int i = 0; i < 200'000; ++i) released += matcher.Push("a").text.size();
  EXPECT_EQ(released, 100'000u);
  EXPECT_EQ(matcher.Push("z").text.size(), 100'001u);
}

TEST(MarkedTextTest, AppendingAndCuttingKeepsTheMarks) {
  MarkedText text = MarkedText::Literal("ab");
  text.Append(MarkedText::Content("cd"));
  text.Append(MarkedText::Content(""));
  text.Append(MarkedText::Content("ef"));
  text.AppendLiteral("gh");
  using Range = MarkedText::Range;
  EXPECT_THAT(text.content(), ElementsAre(Range{2, 6}));
  EXPECT_THAT(text.LiteralRanges(), ElementsAre(Range{0, 2}, Range{6, 8}));
  EXPECT_THAT(text.Substring(1, 4).content(), ElementsAre(Range{1, 3}));
  EXPECT_THAT(text.Substring(5, 8).content(), ElementsAre(Range{0, 1}));
  EXPECT_THAT(text.Substring(6, 8).content(), IsEmpty());
  EXPECT_THAT(text.Substring(3, 3).content(), IsEmpty());
}

void Replay(const std::string& folder, void (*try_as)(std::string_view)) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator("tests/text/corpus/" + folder)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    std::stringstream bytes;
    bytes << file.rdbuf();
    try_as(bytes.str());
    ++files;
  }
  EXPECT_GE(files, 3);
}

TEST(FuzzCorpusTest, TokenizerFilesKeepTheirPromises) { Replay("tokenizer_json", TryAsTokenizerJson); }
TEST(FuzzCorpusTest, ChatTemplatesKeepTheirPromises) { Replay("chat_template", TryAsChatTemplate); }
TEST(FuzzCorpusTest, StopStringsKeepTheirPromises) { Replay("stop_matcher", TryAsStopMatcher); }

}  // namespace
}  // namespace quicksilver
