#include "tools/bench_serve/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

/// An answer of 9 tokens in three pieces of two blocks; sent at 1 s, done 0.9 s later.
RequestRecord Answer() {
  RequestRecord record;
  record.outcome = Outcome::kOk;
  record.status = 200;
  record.start = 1.0;
  record.end = 0.9;
  record.pieces = {{0.1, 10, 4}, {0.2, 10, 4}, {0.5, 10, 5}};
  record.prompt_tokens = 20;
  record.output_tokens = 9;
  record.forwards = 3;
  return record;
}

RequestRecord Ended(Outcome outcome, double start, double end) {
  RequestRecord record;
  record.outcome = outcome;
  record.start = start;
  record.end = end;
  return record;
}

TEST(PercentileTest, IsLinearBetweenRanks) {
  const std::vector<double> sorted = {1.0, 2.0, 3.0, 10.0};
  EXPECT_DOUBLE_EQ(Percentile(sorted, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(Percentile(sorted, 50.0), 2.5);
  EXPECT_DOUBLE_EQ(Percentile(sorted, 100.0), 10.0);
  EXPECT_DOUBLE_EQ(Percentile(sorted, 90.0), 3.0 + 0.7 * 7.0);
  EXPECT_DOUBLE_EQ(Percentile({5.0}, 99.0), 5.0);
}

TEST(BlockSecondsTest, ABlockEndsWithItsLastText) { EXPECT_THAT(BlockSeconds(Answer()), ElementsAre(0.2, 0.5)); }

TEST(BlockSecondsTest, EveryPieceIsABlockWhereTheServerNamesNone) {
  RequestRecord record = Answer();
  for (TextPiece& piece : record.pieces) piece.block = -1;
  EXPECT_THAT(BlockSeconds(record), ElementsAre(0.1, 0.2, 0.5));
}

TEST(WorkOutMetricsTest, OneAnswerHasTheLatenciesThatItsTimesSay) {
  const BenchMetrics metrics = WorkOutMetrics({Answer()}, {50.0, 99.0}, {});
  EXPECT_DOUBLE_EQ(metrics.latencies.at("ttft").mean_ms, 100.0);
  EXPECT_DOUBLE_EQ(metrics.latencies.at("tpot").mean_ms, 100.0);  // (0.9 - 0.1) / 8
  EXPECT_DOUBLE_EQ(metrics.latencies.at("itl").mean_ms, 200.0);   // 100 and 300
  EXPECT_EQ(metrics.latencies.at("itl").count, 2u);
  EXPECT_DOUBLE_EQ(metrics.latencies.at("itl").std_ms, 100.0);
  EXPECT_DOUBLE_EQ(metrics.latencies.at("e2el").mean_ms, 900.0);
  EXPECT_DOUBLE_EQ(metrics.latencies.at("ttfb").mean_ms, 200.0);
  EXPECT_DOUBLE_EQ(metrics.latencies.at("tpb").mean_ms, 300.0);
  EXPECT_DOUBLE_EQ(metrics.duration, 1.9);
  EXPECT_DOUBLE_EQ(metrics.output_throughput, 9.0 / 1.9);
  EXPECT_DOUBLE_EQ(metrics.total_token_throughput, 29.0 / 1.9);
  EXPECT_DOUBLE_EQ(metrics.tokens_per_forward(), 3.0);
}

TEST(WorkOutMetricsTest, OnlyWholeAnswersCountAsThroughputAndLatency) {
  RequestRecord cut = Answer();
  cut.outcome = Outcome::kFailed;
  const BenchMetrics metrics = WorkOutMetrics(
      {Answer(), cut, Ended(Outcome::kRejected, 0.0, 0.01), Ended(Outcome::kRejected, 0.0, 0.03)}, {99.0}, {});
  EXPECT_EQ(metrics.completed, 1u);
  EXPECT_EQ(metrics.failed, 1u);
  EXPECT_EQ(metrics.rejected, 2u);
  EXPECT_EQ(metrics.total_output, 9u);
  EXPECT_EQ(metrics.latencies.at("e2el").count, 1u);
  EXPECT_DOUBLE_EQ(metrics.rejects.median_ms, 20.0);
}

TEST(WorkOutMetricsTest, GoodputCountsRequestsThatKeepEveryLimit) {
  RequestRecord slow = Answer();
  slow.end = 2.0;
  const std::vector<RequestRecord> records = {Answer(), slow};
  const BenchMetrics both = WorkOutMetrics(records, {}, {{"ttft", 150.0}, {"e2el", 1000.0}});
  EXPECT_DOUBLE_EQ(both.request_goodput.value(), 1.0 / 3.0);
  EXPECT_DOUBLE_EQ(both.committed_goodput, 9.0 / 3.0);
  EXPECT_DOUBLE_EQ(WorkOutMetrics(records, {}, {{"ttft", 50.0}}).request_goodput.value(), 0.0);
  const BenchMetrics unlimited = WorkOutMetrics(records, {}, {});
  EXPECT_FALSE(unlimited.request_goodput.has_value());
  EXPECT_DOUBLE_EQ(unlimited.committed_goodput, unlimited.output_throughput);
}

TEST(WorkOutMetricsTest, SpreadsTokensOverTheSecondsInWhichTheirTextCame) {
  RequestRecord record = Answer();
  record.pieces = {{0.5, 10, -1}, {1.5, 20, -1}};
  record.end = 1.6;
  const BenchMetrics metrics = WorkOutMetrics({record}, {}, {});
  ASSERT_EQ(metrics.seconds.size(), 3u);
  EXPECT_DOUBLE_EQ(metrics.seconds[1].output_tokens, 3.0);
  EXPECT_DOUBLE_EQ(metrics.seconds[2].output_tokens, 6.0);
  EXPECT_DOUBLE_EQ(metrics.max_output_tokens_per_s, 6.0);
  EXPECT_EQ(metrics.seconds[2].completed, 1u);
}

TEST(WorkOutMetricsTest, CountsTheMostRequestsAtATime) {
  const BenchMetrics metrics = WorkOutMetrics(
      {Ended(Outcome::kOk, 0.0, 1.0), Ended(Outcome::kOk, 0.5, 1.0), Ended(Outcome::kOk, 1.0, 1.0)}, {}, {});
  EXPECT_EQ(metrics.max_concurrent_requests, 2u) << "the first ends when the third begins";
}

TEST(WorkOutMetricsTest, ARunWithoutAnyAnswerHasZeros) {
  const BenchMetrics metrics = WorkOutMetrics({Ended(Outcome::kFailed, 0.0, 0.0)}, {99.0}, {});
  EXPECT_EQ(metrics.latencies.at("ttft").count, 0u);
  EXPECT_EQ(metrics.latencies.at("ttft").percentiles_ms.front().second, 0.0);
  EXPECT_EQ(metrics.output_throughput, 0.0);
}

}  // namespace
}  // namespace quicksilver
