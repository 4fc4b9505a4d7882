#include "tools/bench_serve/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/support/temp_directory.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

constexpr const char* kDemo = "models/demo";

BenchServeOptions Random(uint32_t prompts, uint32_t input_len) {
  BenchServeOptions options;
  options.num_prompts = prompts;
  options.input_len = input_len;
  options.output_len = 40;
  return options;
}

BenchServeOptions FromFile(BenchDataset dataset, const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
  BenchServeOptions options;
  options.dataset = dataset;
  options.dataset_path = path;
  options.num_prompts = 3;
  return options;
}

TEST(MakePromptsTest, RandomPromptsHaveTheLengthThatTheTokenizerCounts) {
  BenchServeOptions options = Random(20, 50);
  options.tokenizer = kDemo;
  const auto prompts = MakePrompts(options);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  std::set<std::string> texts;
  for (const BenchPrompt& prompt : *prompts) {
    EXPECT_GE(prompt.tokens, 47u) << prompt.text;
    EXPECT_LE(prompt.tokens, 50u) << prompt.text;
    EXPECT_EQ(prompt.tokens_max, 40u);
    texts.insert(prompt.text);
  }
  EXPECT_EQ(texts.size(), 20u) << "no prompt is like another";
}

TEST(MakePromptsTest, WithoutATokenizerATokenIsFourBytes) {
  const auto prompts = MakePrompts(Random(5, 100));
  ASSERT_TRUE(prompts.ok());
  for (const BenchPrompt& prompt : *prompts) {
    EXPECT_GT(prompt.text.size(), 385u);
    EXPECT_LE(prompt.text.size(), 400u);
    EXPECT_LE(prompt.tokens, 100u);
  }
}

TEST(MakePromptsTest, LengthsSpreadOverTheRangeAndPromptsShareThePrefix) {
  BenchServeOptions options = Random(200, 100);
  options.range_ratio = 0.5;
  options.prefix_len = 30;
  const auto prompts = MakePrompts(options);
  ASSERT_TRUE(prompts.ok());
  uint32_t least = 1000, most = 0;
  for (const BenchPrompt& prompt : *prompts) {
    least = std::min(least, prompt.tokens_max);
    most = std::max(most, prompt.tokens_max);
    EXPECT_EQ(prompt.text.substr(0, 100), prompts->front().text.substr(0, 100));
    EXPECT_GE(prompt.tokens, 30u + 45u);
    EXPECT_LE(prompt.tokens, 30u + 152u);
  }
  EXPECT_LE(least, 24u);
  EXPECT_GE(most, 56u);
}

TEST(MakePromptsTest, EqualSeedsGiveEqualPrompts) {
  BenchServeOptions options = Random(3, 30);
  const auto first = MakePrompts(options), again = MakePrompts(options);
  options.seed = 1;
  const auto other = MakePrompts(options);
  ASSERT_TRUE(first.ok() && again.ok() && other.ok());
  EXPECT_EQ(first->back().text, again->back().text);
  EXPECT_NE(first->back().text, other->back().text);
}

TEST(MakePromptsTest, CustomLinesAreRepeatedAsOftenAsNeeded) {
  const TempDirectory folder;
  BenchServeOptions options = FromFile(BenchDataset::kCustom, folder.path() + "/a.jsonl",
                                       "{\"prompt\":\"one\",\"output_tokens\":5}\n\n{\"prompt\":\"two\"}\n");
  const auto prompts = MakePrompts(options);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 3u);
  EXPECT_EQ((*prompts)[0].tokens_max, 5u);
  EXPECT_EQ((*prompts)[1].tokens_max, options.output_len);
  EXPECT_EQ((*prompts)[2].text, "one");
  options.output_len_given = true;
  EXPECT_EQ(MakePrompts(options)->front().tokens_max, options.output_len);
}

TEST(MakePromptsTest, ShareGptGivesTheFirstQuestionAndTheLengthOfItsAnswer) {
  const TempDirectory folder;
  const BenchServeOptions options =
      FromFile(BenchDataset::kShareGpt, folder.path() + "/a.json",
               R"([{"conversations":[{"from":"human","value":"why"},{"from":"gpt","value":"12345678"}]},)"
               R"({"conversations":[{"value":"alone"}]},7])");
  const auto prompts = MakePrompts(options);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_EQ((*prompts)[0].text, "why");
  EXPECT_EQ((*prompts)[0].tokens_max, 2u);
  EXPECT_EQ((*prompts)[2].text, "why");
}

TEST(MakePromptsTest, NamesTheFileAndLineThatIsWrong) {
  const TempDirectory folder;
  const std::string path = folder.path() + "/a";
  for (const auto& [dataset, text, message] : std::vector<std::tuple<BenchDataset, std::string, std::string>>{
           {BenchDataset::kCustom, "{\"prompt\":\"a\"}\n{\"text\":1}\n", ":2: no string `prompt`"},
           {BenchDataset::kCustom, "{\n", ":1: "},
           {BenchDataset::kCustom, "", "holds no prompt"},
           {BenchDataset::kShareGpt, "{}", "is not a JSON array"}}) {
    const auto prompts = MakePrompts(FromFile(dataset, path, text));
    ASSERT_FALSE(prompts.ok());
    EXPECT_THAT(std::string(prompts.status().message()), HasSubstr(path));
    EXPECT_THAT(std::string(prompts.status().message()), HasSubstr(message));
  }
  BenchServeOptions absent;
  absent.dataset = BenchDataset::kCustom;
  absent.dataset_path = folder.path() + "/absent";
  EXPECT_EQ(MakePrompts(absent).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace quicksilver
