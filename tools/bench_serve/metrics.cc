#include "tools/bench_serve/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace quicksilver {
namespace {

using Samples = std::map<std::string, std::vector<double>>;

LatencySummary Summarize(std::vector<double> seconds, const std::vector<double>& percentiles) {
  LatencySummary summary;
  summary.count = seconds.size();
  if (seconds.empty()) seconds.push_back(0.0);
  std::sort(seconds.begin(), seconds.end());
  const auto count = static_cast<double>(seconds.size());
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
  double squares = 0.0;
  for (const double s : seconds) squares += (s - mean) * (s - mean);
  summary.mean_ms = 1e3 * mean;
  summary.median_ms = 1e3 * Percentile(seconds, 50.0);
  summary.std_ms = 1e3 * std::sqrt(squares / count);
  for (const double p : percentiles) summary.percentiles_ms.emplace_back(p, 1e3 * Percentile(seconds, p));
  return summary;
}

/// The latencies that one answer has, in seconds; those it is too short for are missing.
std::map<std::string, double> LatenciesOf(const RequestRecord& record, const std::vector<double>& blocks) {
  std::map<std::string, double> latencies = {{"e2el", record.end}};
  if (record.pieces.empty()) return latencies;
  latencies["ttft"] = record.TimeToFirstToken();
  latencies["ttfb"] = blocks.front();
  if (record.output_tokens > 1) {
    latencies["tpot"] = (record.end - record.TimeToFirstToken()) / static_cast<double>(record.output_tokens - 1);
  }
  return latencies;
}

bool IsGood(const std::map<std::string, double>& latencies, const std::map<std::string, double>& limits_ms) {
  return std::all_of(limits_ms.begin(), limits_ms.end(), [&](const auto& limit) {
    const auto found = latencies.find(limit.first);
    return found == latencies.end() || 1e3 * found->second <= limit.second;
  });
}

void AddToSeconds(const RequestRecord& record, std::vector<SecondOfRun>& seconds) {
  const auto at = [&](double second) -> SecondOfRun& {
    return seconds[std::min(static_cast<size_t>(std::max(second, 0.0)), seconds.size() - 1)];
  };
  SecondOfRun& end = at(record.start + record.end);
  end.completed += record.outcome == Outcome::kOk;
  end.rejected += record.outcome == Outcome::kRejected;
  end.failed += record.outcome == Outcome::kFailed;
  if (record.outcome != Outcome::kOk) return;
  at(record.start).e2els_ms.push_back(1e3 * record.end);
  if (record.pieces.empty()) return;
  at(record.start).ttfts_ms.push_back(1e3 * record.TimeToFirstToken());
  double bytes = 0.0;
  for (const TextPiece& piece : record.pieces) bytes += piece.bytes;
  for (const TextPiece& piece : record.pieces) {
    at(record.start + piece.seconds).output_tokens += static_cast<double>(record.output_tokens) * piece.bytes / bytes;
  }
}

size_t MostAtATime(const std::vector<RequestRecord>& records) {
  std::vector<std::pair<double, int>> changes;
  for (const RequestRecord& record : records) {
    changes.emplace_back(record.start, 1);
    changes.emplace_back(record.start + record.end, -1);
  }
  std::sort(changes.begin(), changes.end());  // At equal times ends come first.
  int now = 0, most = 0;
  for (const auto& change : changes) most = std::max(most, now += change.second);
  return static_cast<size_t>(most);
}

void AddAnswer(const RequestRecord& record, const std::map<std::string, double>& limits_ms, Samples& samples,
               BenchMetrics& metrics, size_t& good) {
  const std::vector<double> blocks = BlockSeconds(record);
  const std::map<std::string, double> latencies = LatenciesOf(record, blocks);
  for (const auto& [name, seconds] : latencies) samples[name].push_back(seconds);
  for (size_t i = 1; i < record.pieces.size(); ++i) {
    samples["itl"].push_back(record.pieces[i].seconds - record.pieces[i - 1].seconds);
  }
  for (size_t i = 1; i < blocks.size(); ++i) samples["tpb"].push_back(blocks[i] - blocks[i - 1]);
  metrics.total_input += record.prompt_tokens;
  metrics.total_output += record.output_tokens;
  metrics.cached_tokens += record.cached_tokens;
  metrics.resumed += record.resumed;
  metrics.forwards += record.forwards;
  if (record.forwards > 0) metrics.tokens_of_forwards += record.output_tokens;
  if (!IsGood(latencies, limits_ms)) return;
  ++good;
  metrics.committed_goodput += static_cast<double>(record.output_tokens);
}

}  // namespace

double Percentile(const std::vector<double>& sorted, double percentile) {
  const double rank = percentile / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (rank - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

std::vector<double> BlockSeconds(const RequestRecord& record) {
  std::vector<double> seconds;
  for (size_t i = 0; i < record.pieces.size(); ++i) {
    const bool goes_on = i + 1 < record.pieces.size() && record.pieces[i].block >= 0 &&
                         record.pieces[i + 1].block == record.pieces[i].block;
    if (!goes_on) seconds.push_back(record.pieces[i].seconds);
  }
  return seconds;
}

BenchMetrics WorkOutMetrics(const std::vector<RequestRecord>& records, const std::vector<double>& percentiles,
                            const std::map<std::string, double>& limits_ms) {
  BenchMetrics metrics;
  for (const RequestRecord& record : records) metrics.duration = std::max(metrics.duration, record.start + record.end);
  metrics.seconds.resize(static_cast<size_t>(metrics.duration) + 1);
  Samples samples;
  size_t good = 0;
  for (const RequestRecord& record : records) {
    AddToSeconds(record, metrics.seconds);
    metrics.completed += record.outcome == Outcome::kOk;
    metrics.failed += record.outcome == Outcome::kFailed;
    metrics.rejected += record.outcome == Outcome::kRejected;
    if (record.outcome == Outcome::kOk) AddAnswer(record, limits_ms, samples, metrics, good);
    if (record.outcome == Outcome::kRejected) samples["reject"].push_back(record.end);
  }
  const double duration = std::max(metrics.duration, 1e-9);
  metrics.request_throughput = static_cast<double>(metrics.completed) / duration;
  metrics.output_throughput = static_cast<double>(metrics.total_output) / duration;
  metrics.total_token_throughput = static_cast<double>(metrics.total_input + metrics.total_output) / duration;
  metrics.committed_goodput /= duration;
  if (!limits_ms.empty()) metrics.request_goodput = static_cast<double>(good) / duration;
  metrics.max_concurrent_requests = MostAtATime(records);
  for (SecondOfRun& second : metrics.seconds) {
    metrics.max_output_tokens_per_s = std::max(metrics.max_output_tokens_per_s, second.output_tokens);
    std::sort(second.ttfts_ms.begin(), second.ttfts_ms.end());
    std::sort(second.e2els_ms.begin(), second.e2els_ms.end());
  }
  for (const char* name : {"ttft", "tpot", "itl", "e2el", "ttfb", "tpb"}) {
    metrics.latencies[name] = Summarize(samples[name], percentiles);
  }
  metrics.rejects = Summarize(samples["reject"], {50.0, 99.0});
  return metrics;
}

}  // namespace quicksilver
