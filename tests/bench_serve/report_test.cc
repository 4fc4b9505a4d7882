#include "tools/bench_serve/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tools/bench_serve/picture.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<RequestRecord> Records() {
  RequestRecord ok;
  ok.outcome = Outcome::kOk;
  ok.status = 200;
  ok.end = 2.5;
  ok.pieces = {{0.1, 10, 0}, {2.0, 10, 1}};
  ok.prompt_tokens = 7;
  ok.output_tokens = 6;
  ok.forwards = 2;
  ok.text = "\xff text";
  RequestRecord rejected;
  rejected.outcome = Outcome::kRejected;
  rejected.status = 503;
  rejected.end = 0.004;
  rejected.error = "full";
  return {ok, rejected};
}

BenchServeOptions Options() {
  BenchServeOptions options;
  options.model = "org/demo";
  options.num_prompts = 2;
  options.metric_percentiles = "50,99.9";
  options.goodput = {"ttft:500 e2el:100"};
  EXPECT_TRUE(CheckOptions(options).ok());
  return options;
}

nlohmann::json Json(const BenchServeOptions& options) {
  const BenchMetrics metrics = WorkOutMetrics(Records(), options.percentiles, options.limits_ms);
  return nlohmann::json::parse(ReportJson(options, metrics, Records(), "20261123-200000"));
}

// Scripts read these names.
TEST(ReportJsonTest, HasTheKeysOfVllm) {
  const nlohmann::json json = Json(Options());
  for (const char* key : {"date",
                          "backend",
                          "label",
                          "model_id",
                          "tokenizer_id",
                          "num_prompts",
                          "request_rate",
                          "burstiness",
                          "max_concurrency",
                          "duration",
                          "completed",
                          "failed",
                          "total_input_tokens",
                          "total_output_tokens",
                          "request_throughput",
                          "request_goodput",
                          "output_throughput",
                          "total_token_throughput",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests",
                          "mean_ttft_ms",
                          "median_ttft_ms",
                          "std_ttft_ms",
                          "p50_ttft_ms",
                          "p99.9_ttft_ms",
                          "mean_tpot_ms",
                          "mean_itl_ms",
                          "mean_e2el_ms"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["completed"], 1);
  EXPECT_EQ(json["rejected"], 1);
  EXPECT_EQ(json["failed"], 0);
  EXPECT_EQ(json["request_goodput"], 0.0);
  EXPECT_EQ(json["diffusion_committed_per_step"], 3.0);
  EXPECT_EQ(json["p99_reject_ms"], 4.0);
  EXPECT_FALSE(json.contains("ttfts"));
}

TEST(ReportJsonTest, DetailsHaveAnEntryForEveryRequest) {
  BenchServeOptions options = Options();
  options.save_detailed = true;
  const nlohmann::json json = Json(options);
  for (const char* key : {"input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"}) {
    EXPECT_EQ(json.at(key).size(), 2u) << key;
  }
  EXPECT_EQ(json["itls"][0], nlohmann::json::array({1.9}));
  EXPECT_EQ(json["errors"][1], "full");
}

TEST(ReportTableTest, SaysTheFiguresInTheWordsOfVllm) {
  const BenchServeOptions options = Options();
  const std::string table = ReportTable(options, WorkOutMetrics(Records(), options.percentiles, options.limits_ms));
  EXPECT_EQ(table.find("============ Serving Benchmark Result ============\n"), 0u);
  for (const char* line :
       {"Successful requests:                     1         \n",
        "Failed requests:                         0         \n",
        "Benchmark duration (s):                  2.50      \n",
        "Total input tokens:                      7         \n",
        "Total generated tokens:                  6         \n",
        "Request throughput (req/s):              0.40      \n",
        "Request goodput (req/s):                 0.00      \n",
        "Output token throughput (tok/s):         2.40      \n",
        "Total token throughput (tok/s):          5.20      \n", "---------------Time to First Token----------------\n",
        "-----Time per Output Token (excl. 1st token)------\n", "Mean TTFT (ms):                          100.00    \n",
        "P99.9 E2EL (ms):                         2500.00   \n",
        "Tokens per forward:                      3.00      \n"}) {
    EXPECT_THAT(table, HasSubstr(line));
  }
}

TEST(ReportTableTest, LeavesOutLatenciesThatNobodyAskedFor) {
  BenchServeOptions options;
  options.percentile_metrics = "ttft";
  ASSERT_TRUE(CheckOptions(options).ok());
  EXPECT_THAT(ReportTable(options, WorkOutMetrics(Records(), options.percentiles, {})), Not(HasSubstr("E2EL")));
}

TEST(ResultPathTest, NamesTheRunLikeVllm) {
  BenchServeOptions options = Options();
  options.result_dir = "results";
  EXPECT_EQ(ResultPath(options, "D"), "results/openai-infqps-demo-D.json");
  options.max_concurrency = 8;
  options.request_rate = 2.5;
  EXPECT_EQ(ResultPath(options, "D"), "results/openai-2.5qps-concurrency8-demo-D.json");
  options.result_filename = "x.json";
  EXPECT_EQ(ResultPath(options, "D"), "results/x.json");
}

/// Whether every tag is closed in order and attributes are quoted: what an XML parser insists on, for our few tags.
bool WellFormed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = 0; (at = xml.find('<', at)) != std::string::npos;) {
    const size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" /", 1) - (tag[0] == '/'));
    if (tag.find('<') != std::string::npos || std::count(tag.begin(), tag.end(), '"') % 2 != 0) return false;
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    at = end;
  }
  return open.empty();
}

TEST(DrawPictureTest, IsWellFormedWhateverTheTitleSaysAndHoweverLongTheRun) {
  for (const double seconds : {0.0, 1.0, 100.0, 5000.0}) {
    std::vector<RequestRecord> records = Records();
    records[0].start = seconds;
    const std::string svg = DrawPicture("a<b> & \"c\"", WorkOutMetrics(records, {}, {}));
    EXPECT_TRUE(WellFormed(svg)) << svg;
    EXPECT_THAT(svg, HasSubstr("a&lt;b&gt; &amp; &quot;c&quot;"));
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_LT(svg.size(), 100'000u);
  }
}

}  // namespace
}  // namespace quicksilver
