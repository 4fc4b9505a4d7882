#include "tools/bench_serve/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/host_port.h"
#include "common/json.h"
#include "common/options.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

constexpr uint32_t kTokensMax = 1'000'000;

absl::Status Wrong(const char* option, const std::string& value, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(option, ": '", value, "' ", why));
}

void AddServerOptions(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--backend", o.backend_name, "API to speak: openai (alias vllm): completions; openai-chat: chat")
      ->check(CLI::IsMember({"openai", "vllm", "openai-chat"}))
      ->capture_default_str();
  app.add_option("--base-url", o.base_url, "Server, e.g. http://127.0.0.1:8080; in place of --host and --port");
  app.add_option("--host", o.host)->capture_default_str();
  app.add_option("--port", o.port)->check(CLI::Range(1, 65535))->capture_default_str();
  app.add_option("--endpoint", o.endpoint, "Path (default: /v1/completions or /v1/chat/completions, by the backend)");
  app.add_option("--header", o.headers, "KEY=VALUE: a header of every request; may be repeated");
  app.add_option("--model", o.model, "Model to ask (default: the first that the server has)");
  app.add_option("--tokenizer", o.tokenizer,
                 "Directory with tokenizer.json and config.json, to make prompts of exact length (default: words, at 4 "
                 "bytes a token; the server's own count is reported where it gives one)");
  app.add_option("--extra-body", o.extra_body, "JSON object whose members join every request");
  app.add_option("--temperature", o.temperature, "Sampling temperature (default: the server's)")
      ->check(CLI::Range(0.0, 2.0));
  app.add_flag("--ignore-eos", o.ignore_eos, "Ask for answers of full length (ignore_eos in the request)");
  app.add_option("--request-timeout-sec", o.request_timeout_seconds, "A request that takes longer has failed")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--ready-check-timeout-sec", o.ready_check_timeout_seconds,
                 "How long to wait until a first request succeeds; 0: do not try")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
}

void AddDatasetOptions(CLI::App& app, BenchServeOptions& o) {
  app.add_option(
         "--dataset-name", o.dataset_name,
         "random: made-up words; sharegpt: a JSON array of conversations; custom: a JSON object with `prompt` (and "
         "`output_tokens`) a line")
      ->check(CLI::IsMember({"random", "sharegpt", "custom"}))
      ->capture_default_str();
  app.add_option("--dataset-path", o.dataset_path, "File of sharegpt or custom");
  app.add_option("--num-prompts", o.num_prompts)->check(CLI::Range(1u, 1'000'000u))->capture_default_str();
  app.add_option("--random-input-len,--input-len", o.input_len,
                 "Tokens of a random prompt, the shared prefix not counted")
      ->check(CLI::Range(1u, kTokensMax))
      ->capture_default_str();
  app.add_option(
         "--random-output-len,--output-len,--custom-output-len,--sharegpt-output-len", o.output_len,
         "Most tokens of an answer (default for sharegpt: as long as the recorded one; for custom: output_tokens)")
      ->check(CLI::Range(1u, kTokensMax))
      ->capture_default_str();
  app.add_option("--random-range-ratio", o.range_ratio, "Lengths are uniform in [len (1 - R), len (1 + R)]")
      ->check(CLI::Range(0.0, 0.999))
      ->capture_default_str();
  app.add_option("--random-prefix-len", o.prefix_len,
                 "Tokens at the front of every random prompt that all of them share")
      ->check(CLI::Range(0u, kTokensMax))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "Of prompts, lengths and arrivals")->capture_default_str();
}

void AddLoadOptions(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--request-rate", o.request_rate,
                 "Requests a second, sent whether or not others are done; inf: all at once")
      ->capture_default_str();
  app.add_option("--burstiness", o.burstiness,
                 "Shape of the gamma distributed gaps: 1 is a Poisson process, less comes in bursts, more is more even")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option(
         "--max-concurrency", o.max_concurrency,
         "Most requests at a time; with an infinite rate this is a closed loop of so many clients. The time that a "
         "request waits here for its turn is in no latency")
      ->check(CLI::Range(1u, 60'000u));
  app.add_option("--num-warmups", o.num_warmups, "Requests before those that count")
      ->check(CLI::Range(0u, 100'000u))
      ->capture_default_str();
}

void AddReportOptions(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--label", o.label, "Name of the results (default: the backend)");
  app.add_option(
         "--percentile-metrics", o.percentile_metrics,
         "Latencies to report: ttft (to the first text), tpot (a token after the first), itl (between chunks), e2el "
         "(the whole answer), ttfb (to the end of the first block), tpb (a block after the first)")
      ->capture_default_str();
  app.add_option("--metric-percentiles", o.metric_percentiles, "Percentiles of them, e.g. 50,95,99.9")
      ->capture_default_str();
  app.add_option("--goodput", o.goodput, "NAME:MS …: what a good request must keep, e.g. ttft:500 tpot:50 e2el:5000");
  app.add_flag("--save-result", o.save_result, "Write the results as JSON");
  app.add_flag("--save-detailed", o.save_detailed, "Write each request's times, lengths, text and error, too");
  app.add_option("--result-dir", o.result_dir, "Folder of the results (default: here)");
  app.add_option("--result-filename", o.result_filename, "Default: {label}-{rate}qps-{model}-{time}.json");
  app.add_option("--picture", o.picture, "SVG file of throughput and latency over time");
  app.add_flag("--disable-tqdm", o.disable_progress, "No line of progress");
}

absl::Status CheckServer(BenchServeOptions& o) {
  o.backend = o.backend_name == "openai-chat" ? BenchBackend::kChat : BenchBackend::kCompletions;
  if (o.endpoint.empty()) {
    o.endpoint = o.backend == BenchBackend::kChat ? "/v1/chat/completions" : "/v1/completions";
  }
  if (!o.base_url.empty()) {
    std::string rest = o.base_url;
    if (absl::StartsWithIgnoreCase(rest, "https://")) {
      return Wrong("--base-url", o.base_url, "asks for TLS, which is not supported; name a plain http:// address");
    }
    if (absl::StartsWithIgnoreCase(rest, "http://")) rest.erase(0, 7);
    while (!rest.empty() && rest.back() == '/') rest.pop_back();
    const size_t slash = rest.find('/');
    if (slash != std::string::npos) {
      o.endpoint = rest.substr(slash) + o.endpoint;
      rest.resize(slash);
    }
    if (rest.find(':', rest.find(']') == std::string::npos ? 0 : rest.find(']')) == std::string::npos) rest += ":80";
    ASSIGN_OR_RETURN(const HostPort address, ParseHostPort("--base-url", rest));
    o.host = address.host;
    o.port = address.port;
  }
  if (o.endpoint.front() != '/' || o.endpoint.find_first_of(" \r\n") != std::string::npos) {
    return Wrong("--endpoint", o.endpoint, "is not a path that begins with '/'");
  }
  for (const std::string& header : o.headers) {
    const size_t equals = header.find('=');
    if (equals == std::string::npos || equals == 0 || header.find_first_of("\r\n") != std::string::npos ||
        header.find_first_of(" :\t") < equals) {
      return Wrong("--header", header, "is not KEY=VALUE");
    }
  }
  nlohmann::json body;
  if (!o.extra_body.empty() && (ParseJson(o.extra_body, {}, body).has_value() || !body.is_object())) {
    return Wrong("--extra-body", o.extra_body, "is not a JSON object");
  }
  return absl::OkStatus();
}

absl::Status CheckGoodput(BenchServeOptions& o) {
  for (const std::string& argument : o.goodput) {
    for (const auto& pair : absl::StrSplit(argument, absl::ByAnyChar(" ,"), absl::SkipEmpty())) {
      const std::vector<std::string> parts = absl::StrSplit(pair, ':');
      double limit = 0.0;
      const bool known = parts[0] == "ttft" || parts[0] == "tpot" || parts[0] == "e2el" || parts[0] == "ttfb";
      if (parts.size() != 2 || !known || !absl::SimpleAtod(parts[1], &limit) || !(limit >= 0.0)) {
        return Wrong("--goodput", std::string(pair), "is not NAME:MILLISECONDS with one of ttft, tpot, e2el, ttfb");
      }
      o.limits_ms[parts[0]] = limit;
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<int> ParseBenchServeOptions(const std::vector<std::string>& arguments, BenchServeOptions& options) {
  CLI::App app(
      "Puts a load on a server with an OpenAI-compatible API and reports what its clients see. A request that is "
      "turned "
      "away (429, 503) counts as rejected, any other without a whole answer as failed.",
      "quicksilver bench serve");
  AddServerOptions(app, options);
  AddDatasetOptions(app, options);
  AddLoadOptions(app, options);
  AddReportOptions(app, options);
  std::vector<const char*> argv = {"quicksilver bench serve"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  if (const auto exit = ParseOptions(app, static_cast<int>(argv.size()), argv.data()); exit.has_value()) return exit;
  options.output_len_given = app.count("--output-len") > 0;
  return std::nullopt;
}

absl::Status CheckOptions(BenchServeOptions& o) {
  RETURN_IF_ERROR(CheckServer(o));
  o.dataset = o.dataset_name == "random"     ? BenchDataset::kRandom
              : o.dataset_name == "sharegpt" ? BenchDataset::kShareGpt
                                             : BenchDataset::kCustom;
  if (o.dataset != BenchDataset::kRandom && o.dataset_path.empty()) {
    return Wrong("--dataset-path", "", absl::StrCat("is needed with --dataset-name=", o.dataset_name));
  }
  if (!(o.request_rate > 0.0)) return Wrong("--request-rate", absl::StrCat(o.request_rate), "is not above 0");
  for (const auto& name : absl::StrSplit(o.percentile_metrics, ',', absl::SkipEmpty())) {
    if (std::find(std::begin(kLatencyMetrics), std::end(kLatencyMetrics), name) == std::end(kLatencyMetrics)) {
      return Wrong("--percentile-metrics", std::string(name),
                   absl::StrCat("is none of ", absl::StrJoin(kLatencyMetrics, ", ")));
    }
    o.latencies.emplace_back(name);
  }
  for (const auto& text : absl::StrSplit(o.metric_percentiles, ',', absl::SkipEmpty())) {
    double percentile = 0.0;
    if (!absl::SimpleAtod(text, &percentile) || !(percentile >= 0.0 && percentile <= 100.0)) {
      return Wrong("--metric-percentiles", std::string(text), "is not within 0 and 100");
    }
    o.percentiles.push_back(percentile);
  }
  std::sort(o.percentiles.begin(), o.percentiles.end());
  if (o.label.empty()) o.label = o.backend_name;
  return CheckGoodput(o);
}

}  // namespace quicksilver
