#include "tools/bench_serve/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

BenchServeOptions Parsed(const std::vector<std::string>& arguments) {
  BenchServeOptions options;
  EXPECT_EQ(ParseBenchServeOptions(arguments, options), std::nullopt);
  return options;
}

TEST(BenchServeOptionsTest, TakesTheNamesOfVllm) {
  BenchServeOptions options = Parsed({"--backend",
                                      "openai-chat",
                                      "--host",
                                      "::1",
                                      "--port",
                                      "9",
                                      "--dataset-name",
                                      "random",
                                      "--random-input-len",
                                      "20",
                                      "--random-output-len",
                                      "30",
                                      "--random-range-ratio",
                                      "0.5",
                                      "--random-prefix-len",
                                      "4",
                                      "--num-prompts",
                                      "5",
                                      "--request-rate",
                                      "inf",
                                      "--burstiness",
                                      "2",
                                      "--max-concurrency",
                                      "6",
                                      "--goodput",
                                      "ttft:500",
                                      "e2el:5000",
                                      "--metric-percentiles",
                                      "99,50",
                                      "--percentile-metrics",
                                      "ttft,e2el",
                                      "--header",
                                      "a=b",
                                      "--header",
                                      "c=d=e",
                                      "--extra-body",
                                      R"({"top_p":1})",
                                      "--ignore-eos",
                                      "--num-warmups",
                                      "2",
                                      "--disable-tqdm",
                                      "--save-result",
                                      "--save-detailed",
                                      "--ready-check-timeout-sec",
                                      "7",
                                      "--seed",
                                      "3"});
  ASSERT_TRUE(CheckOptions(options).ok());
  EXPECT_EQ(options.endpoint, "/v1/chat/completions");
  EXPECT_THAT(options.percentiles, ElementsAre(50.0, 99.0));
  EXPECT_THAT(options.latencies, ElementsAre("ttft", "e2el"));
  EXPECT_THAT(options.limits_ms, UnorderedElementsAre(Pair("ttft", 500.0), Pair("e2el", 5000.0)));
  EXPECT_THAT(options.headers, ElementsAre("a=b", "c=d=e"));
  EXPECT_EQ(options.max_concurrency, 6u);
  EXPECT_TRUE(options.output_len_given);
}

TEST(BenchServeOptionsTest, ABaseUrlGivesHostPortAndPath) {
  BenchServeOptions options = Parsed({"--base-url", "http://localhost:1234/openai/"});
  ASSERT_TRUE(CheckOptions(options).ok());
  EXPECT_EQ(options.host, "localhost");
  EXPECT_EQ(options.port, 1234);
  EXPECT_EQ(options.endpoint, "/openai/v1/completions");
  options = Parsed({"--base-url", "http://[::1]"});
  ASSERT_TRUE(CheckOptions(options).ok());
  EXPECT_EQ(options.host, "::1");
  EXPECT_EQ(options.port, 80);
}

TEST(BenchServeOptionsTest, SaysWhichOptionIsWrong) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--base-url", "https://a"}, "--base-url: 'https://a'"},
      {{"--base-url", "http://a:b"}, "--base-url"},
      {{"--endpoint", "v1"}, "--endpoint: 'v1'"},
      {{"--header", "a"}, "--header: 'a'"},
      {{"--header", "a: b=c"}, "--header"},
      {{"--extra-body", "[1]"}, "--extra-body: '[1]'"},
      {{"--goodput", "itl:5"}, "--goodput: 'itl:5'"},
      {{"--goodput", "ttft:x"}, "--goodput: 'ttft:x'"},
      {{"--percentile-metrics", "ttft,foo"}, "--percentile-metrics: 'foo'"},
      {{"--metric-percentiles", "101"}, "--metric-percentiles: '101'"},
      {{"--request-rate", "0"}, "--request-rate: '0'"},
      {{"--request-rate", "nan"}, "--request-rate"},
      {{"--dataset-name", "custom"}, "--dataset-path"}};
  for (const auto& [arguments, message] : cases) {
    BenchServeOptions options = Parsed(arguments);
    const absl::Status status = CheckOptions(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(BenchServeOptionsTest, RefusesWhatIsOutOfBounds) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--num-prompts", "0"},
                                                    {"--burstiness", "0"},
                                                    {"--max-concurrency", "0"},
                                                    {"--port", "0"},
                                                    {"--random-range-ratio", "1"},
                                                    {"--backend", "tgi"},
                                                    {"--dataset-name", "sonnet"},
                                                    {"--unknown", "1"}}) {
    BenchServeOptions options;
    EXPECT_EQ(ParseBenchServeOptions(arguments, options), kExitUsage) << arguments[0];
  }
}

}  // namespace
}  // namespace quicksilver
