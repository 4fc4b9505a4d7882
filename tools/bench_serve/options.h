#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace quicksilver {

enum class BenchBackend { kCompletions, kChat };
enum class BenchDataset { kRandom, kShareGpt, kCustom };

/// The latencies that a report may show, in the order in which it does.
inline constexpr const char* kLatencyMetrics[] = {"ttft", "tpot", "itl", "e2el", "ttfb", "tpb"};

/// What `quicksilver bench serve` was asked to do. Names follow the options.
struct BenchServeOptions {
  std::string backend_name = "openai";
  BenchBackend backend = BenchBackend::kCompletions;
  std::string base_url;
  std::string host = "127.0.0.1";
  uint16_t port = 8080;
  std::string endpoint;  ///< Empty until CheckOptions: the backend's.
  std::string model;     ///< Empty: the first that the server has.
  std::string tokenizer;
  std::vector<std::string> headers;  ///< KEY=VALUE
  std::string extra_body;            ///< A JSON object, or empty.
  std::optional<double> temperature;
  bool ignore_eos = false;

  BenchDataset dataset = BenchDataset::kRandom;
  std::string dataset_name = "random";
  std::string dataset_path;
  uint32_t num_prompts = 1000;
  uint32_t input_len = 1024;
  uint32_t output_len = 128;
  bool output_len_given = false;
  double range_ratio = 0.0;
  uint32_t prefix_len = 0;
  uint64_t seed = 0;

  double request_rate = std::numeric_limits<double>::infinity();
  double burstiness = 1.0;
  std::optional<uint32_t> max_concurrency;
  uint32_t num_warmups = 0;
  uint32_t request_timeout_seconds = 600;
  uint32_t ready_check_timeout_seconds = 60;

  std::string label;
  std::string percentile_metrics = "ttft,tpot,itl,e2el,ttfb,tpb";
  std::string metric_percentiles = "99";
  std::vector<std::string> goodput;  ///< NAME:MILLISECONDS
  bool save_result = false;
  bool save_detailed = false;
  std::string result_dir;
  std::string result_filename;
  std::string picture;
  bool disable_progress = false;

  // Worked out by CheckOptions.
  std::vector<std::string> latencies;  ///< Of kLatencyMetrics.
  std::vector<double> percentiles;     ///< Ascending.
  std::map<std::string, double> limits_ms;
};

/// Fills `options` from the command line. The exit code when the program should end now.
std::optional<int> ParseBenchServeOptions(const std::vector<std::string>& arguments, BenchServeOptions& options);

/// What the parser of the command line cannot judge alone: lists, pairs, the URL. InvalidArgument names the option.
absl::Status CheckOptions(BenchServeOptions& options);

}  // namespace quicksilver
