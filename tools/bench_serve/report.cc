#include "tools/bench_serve/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace quicksilver {
namespace {

using nlohmann::ordered_json;

constexpr size_t kWidth = 50;

struct Titled {
  const char* name;
  const char* title;
};

constexpr Titled kSections[] = {{"ttft", "Time to First Token"}, {"tpot", "Time per Output Token (excl. 1st token)"},
                                {"itl", "Inter-token Latency"},  {"e2el", "End-to-end Latency"},
                                {"ttfb", "Time to First Block"}, {"tpb", "Time per Block (excl. 1st block)"}};

std::string Rule(const std::string& title, char fill) {
  const std::string text = title.empty() ? "" : (fill == '=' ? " " + title + " " : title);
  const size_t left = (kWidth - text.size()) / 2;
  return std::string(left, fill) + text + std::string(kWidth - text.size() - left, fill) + "\n";
}

std::string Row(const std::string& name, double value) { return absl::StrFormat("%-40s %-10.2f\n", name + ":", value); }
std::string Row(const std::string& name, uint64_t value) { return absl::StrFormat("%-40s %-10u\n", name + ":", value); }

// 99, or 99.9 where it is no whole number.
std::string PercentileWord(double percentile) { return absl::StrCat(percentile); }

bool Wants(const BenchServeOptions& options, const std::string& name) {
  return std::find(options.latencies.begin(), options.latencies.end(), name) != options.latencies.end();
}

std::string LatencyRows(const char* name, const LatencySummary& latency) {
  const std::string upper = absl::AsciiStrToUpper(name);
  std::string out =
      Row("Mean " + upper + " (ms)", latency.mean_ms) + Row("Median " + upper + " (ms)", latency.median_ms);
  for (const auto& [percentile, value] : latency.percentiles_ms) {
    out += Row("P" + PercentileWord(percentile) + " " + upper + " (ms)", value);
  }
  return out;
}

ordered_json RateJson(double rate) { return std::isinf(rate) ? ordered_json("inf") : ordered_json(rate); }

void AddDetails(const std::vector<RequestRecord>& records, ordered_json& out) {
  for (const char* key : {"input_lens", "output_lens", "start_times", "ttfts", "itls", "e2els", "statuses", "forwards",
                          "cached_tokens_each", "resumed_each", "finish_reasons", "generated_texts", "errors"}) {
    out[key] = ordered_json::array();
  }
  for (const RequestRecord& record : records) {
    const bool ok = record.outcome == Outcome::kOk;
    ordered_json gaps = ordered_json::array();
    for (size_t i = 1; i < record.pieces.size(); ++i) {
      gaps.push_back(record.pieces[i].seconds - record.pieces[i - 1].seconds);
    }
    out["input_lens"].push_back(record.prompt_tokens);
    out["output_lens"].push_back(ok ? record.output_tokens : 0);
    out["start_times"].push_back(record.start);
    out["ttfts"].push_back(record.pieces.empty() ? 0.0 : record.TimeToFirstToken());
    out["itls"].push_back(std::move(gaps));
    out["e2els"].push_back(record.end);
    out["statuses"].push_back(record.status);
    out["forwards"].push_back(record.forwards);
    out["cached_tokens_each"].push_back(record.cached_tokens);
    out["resumed_each"].push_back(record.resumed);
    out["finish_reasons"].push_back(record.finish_reason);
    out["generated_texts"].push_back(record.text);
    out["errors"].push_back(record.error);
  }
}

void AddFigures(const BenchMetrics& m, ordered_json& out) {
  out["duration"] = m.duration;
  out["completed"] = m.completed;
  out["failed"] = m.failed;
  out["rejected"] = m.rejected;
  out["total_input_tokens"] = m.total_input;
  out["total_output_tokens"] = m.total_output;
  out["request_throughput"] = m.request_throughput;
  out["request_goodput"] = m.request_goodput.has_value() ? ordered_json(*m.request_goodput) : ordered_json();
  out["output_throughput"] = m.output_throughput;
  out["total_token_throughput"] = m.total_token_throughput;
  out["max_output_tokens_per_s"] = m.max_output_tokens_per_s;
  out["max_concurrent_requests"] = m.max_concurrent_requests;
  out["diffusion_committed_throughput"] = m.output_throughput;
  out["diffusion_committed_goodput"] = m.committed_goodput;
  out["diffusion_committed_tokens"] = m.tokens_of_forwards;
  out["diffusion_denoising_steps"] = m.forwards;
  out["diffusion_committed_per_step"] = m.tokens_per_forward();
  out["cached_tokens"] = m.cached_tokens;
  out["resumed"] = m.resumed;
  out["median_reject_ms"] = m.rejects.median_ms;
  out["p99_reject_ms"] = m.rejects.percentiles_ms.back().second;
}

}  // namespace

std::string ReportTable(const BenchServeOptions& options, const BenchMetrics& m) {
  std::string out = Rule("Serving Benchmark Result", '=');
  out += Row("Successful requests", uint64_t{m.completed});
  out += Row("Failed requests", uint64_t{m.failed});
  out += Row("Rejected requests (429, 503)", uint64_t{m.rejected});
  if (options.max_concurrency.has_value())
    out += Row("Maximum request concurrency", uint64_t{*options.max_concurrency});
  if (!std::isinf(options.request_rate)) out += Row("Request rate configured (RPS)", options.request_rate);
  out += Row("Benchmark duration (s)", m.duration);
  out += Row("Total input tokens", m.total_input);
  out += Row("Total generated tokens", m.total_output);
  out += Row("Request throughput (req/s)", m.request_throughput);
  if (m.request_goodput.has_value()) out += Row("Request goodput (req/s)", *m.request_goodput);
  out += Row("Output token throughput (tok/s)", m.output_throughput);
  out += Row("Peak output token throughput (tok/s)", m.max_output_tokens_per_s);
  out += Row("Peak concurrent requests", static_cast<double>(m.max_concurrent_requests));
  out += Row("Total token throughput (tok/s)", m.total_token_throughput);
  for (const Titled& section : kSections) {
    if (!Wants(options, section.name)) continue;
    out += Rule(section.title, '-') + LatencyRows(section.name, m.latencies.at(section.name));
  }
  out += Rule("Diffusion Decoding", '-');
  out += Row("Committed-token goodput (tok/s)", m.committed_goodput);
  if (m.forwards > 0) out += Row("Tokens per forward", m.tokens_per_forward());
  out += Row("Denoising forwards", m.forwards);
  out += Row("Cached prompt tokens", m.cached_tokens);
  out += Row("Resumed", m.resumed);
  if (m.rejected > 0) {
    out += Rule("Time to Rejection", '-');
    out += Row("Median rejection (ms)", m.rejects.median_ms);
    out += Row("P99 rejection (ms)", m.rejects.percentiles_ms.back().second);
  }
  return out + Rule("", '=');
}

std::string ReportJson(const BenchServeOptions& options, const BenchMetrics& metrics,
                       const std::vector<RequestRecord>& records, const std::string& date) {
  ordered_json out;
  out["date"] = date;
  out["backend"] = options.backend_name;
  out["label"] = options.label;
  out["model_id"] = options.model;
  out["tokenizer_id"] = options.tokenizer;
  out["num_prompts"] = options.num_prompts;
  out["request_rate"] = RateJson(options.request_rate);
  out["burstiness"] = options.burstiness;
  out["max_concurrency"] =
      options.max_concurrency.has_value() ? ordered_json(*options.max_concurrency) : ordered_json();
  AddFigures(metrics, out);
  for (const std::string& name : options.latencies) {
    const LatencySummary& latency = metrics.latencies.at(name);
    out["mean_" + name + "_ms"] = latency.mean_ms;
    out["median_" + name + "_ms"] = latency.median_ms;
    out["std_" + name + "_ms"] = latency.std_ms;
    for (const auto& [percentile, value] : latency.percentiles_ms) {
      out["p" + PercentileWord(percentile) + "_" + name + "_ms"] = value;
    }
  }
  if (options.save_detailed) AddDetails(records, out);
  return out.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string ResultPath(const BenchServeOptions& options, const std::string& date) {
  std::string name = options.result_filename;
  if (name.empty()) {
    const std::string model = options.model.substr(options.model.rfind('/') + 1);
    const std::string concurrency =
        options.max_concurrency.has_value() ? absl::StrCat("-concurrency", *options.max_concurrency) : "";
    name = absl::StrCat(options.label, "-", options.request_rate, "qps", concurrency, "-", model, "-", date, ".json");
  }
  return options.result_dir.empty() ? name : options.result_dir + "/" + name;
}

}  // namespace quicksilver
