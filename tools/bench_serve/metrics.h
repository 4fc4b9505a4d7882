#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/bench_serve/answer.h"

namespace quicksilver {

/// The `percentile`-th percentile, linear between the two nearest ranks. Requires: sorted ascending, not empty. Pure.
double Percentile(const std::vector<double>& sorted, double percentile);

struct LatencySummary {
  size_t count = 0;
  double mean_ms = 0.0, median_ms = 0.0, std_ms = 0.0;
  std::vector<std::pair<double, double>> percentiles_ms;  ///< (percentile, value)
};

/// What happened within one second of the run.
struct SecondOfRun {
  double output_tokens = 0.0;
  uint32_t completed = 0, rejected = 0, failed = 0;
  std::vector<double> ttfts_ms, e2els_ms;  ///< Of the requests that were sent in this second; sorted.
};

/// The figures of a run. Throughput and latencies are of the requests that succeeded.
struct BenchMetrics {
  double duration = 0.0;  ///< Seconds from the start to the end of the last request.
  size_t completed = 0, rejected = 0, failed = 0;
  uint64_t total_input = 0, total_output = 0, cached_tokens = 0, forwards = 0, resumed = 0;
  /// Output tokens of the requests that tell their forwards: total_output where all do.
  uint64_t tokens_of_forwards = 0;
  double request_throughput = 0.0, output_throughput = 0.0, total_token_throughput = 0.0;
  double max_output_tokens_per_s = 0.0;  ///< The best second.
  size_t max_concurrent_requests = 0;
  std::optional<double> request_goodput;            ///< Good requests a second; empty where no limit was given.
  double committed_goodput = 0.0;                   ///< Output tokens a second of good requests; without limits of all.
  std::map<std::string, LatencySummary> latencies;  ///< By the names of kLatencyMetrics.
  LatencySummary rejects;                           ///< Time until a rejection was there.
  std::vector<SecondOfRun> seconds;

  double tokens_per_forward() const {
    return forwards == 0 ? 0.0 : static_cast<double>(tokens_of_forwards) / static_cast<double>(forwards);
  }
};

/// The time at which each block of an answer was complete, ascending: the last text of every block where the server
/// says which block a text is of, else every piece counts as one. Pure.
std::vector<double> BlockSeconds(const RequestRecord& record);

/// `percentiles`: which to work out. `limits_ms`: what a good request keeps, by latency name. Pure.
BenchMetrics WorkOutMetrics(const std::vector<RequestRecord>& records, const std::vector<double>& percentiles,
                            const std::map<std::string, double>& limits_ms);

}  // namespace quicksilver
