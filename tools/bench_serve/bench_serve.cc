#include "tools/bench_serve/bench_serve.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/status_macros.h"
#include "tools/bench_serve/arrivals.h"
#include "tools/bench_serve/dataset.h"
#include "tools/bench_serve/load.h"
#include "tools/bench_serve/metrics.h"
#include "tools/bench_serve/options.h"
#include "tools/bench_serve/picture.h"
#include "tools/bench_serve/report.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kReadyRetryInterval = absl::Milliseconds(500);
constexpr size_t kErrorsShownMax = 3;

// A status that asking again does not change.
bool IsFinal(int status) { return status >= 400 && status < 500 && status != 408 && status != 429; }

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::error_code ignored;  // Opening the file says what is wrong.
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, ignored);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  return file ? absl::OkStatus() : absl::PermissionDeniedError(absl::StrCat(path, ": cannot be written"));
}

/// Asks until one request succeeds, so that a wrong model or length shows before the run.
absl::Status AwaitReady(const BenchServeOptions& options, const BenchPrompt& prompt) {
  const absl::Duration deadline = MonotonicNow() + absl::Seconds(options.ready_check_timeout_seconds);
  while (true) {
    ASSIGN_OR_RETURN(const std::vector<RequestRecord> records, RunLoad(options, {prompt}, {0.0}, nullptr));
    const RequestRecord& record = records.front();
    if (record.outcome == Outcome::kOk) return absl::OkStatus();
    if (IsFinal(record.status) || MonotonicNow() + kReadyRetryInterval > deadline) {
      return absl::UnavailableError(absl::StrCat("http://", options.host, ":", options.port, options.endpoint,
                                                 ": the first request failed (status ", record.status,
                                                 "): ", record.error));
    }
    absl::SleepFor(kReadyRetryInterval);
  }
}

absl::Status ChooseModel(BenchServeOptions& options) {
  const absl::Duration deadline = MonotonicNow() + absl::Seconds(options.ready_check_timeout_seconds);
  while (options.model.empty()) {
    absl::StatusOr<std::string> model = FirstModel(options);
    if (model.ok()) options.model = *std::move(model);
    if (!model.ok() && MonotonicNow() + kReadyRetryInterval > deadline) return model.status();
    if (!model.ok()) absl::SleepFor(kReadyRetryInterval);
  }
  return absl::OkStatus();
}

void ShowProgress(const LoadProgress& progress) {
  std::fprintf(stderr, "\r\033[K%zu/%zu done, %zu running, %zu rejected, %zu failed, %.0f tok/s, %.0f s", progress.done,
               progress.total, progress.running, progress.rejected, progress.failed,
               progress.seconds > 0 ? static_cast<double>(progress.output_tokens) / progress.seconds : 0.0,
               progress.seconds);
  if (progress.done == progress.total) std::fputc('\n', stderr);
  std::fflush(stderr);
}

/// The most frequent errors, so that a failed run explains itself.
void ShowErrors(const std::vector<RequestRecord>& records) {
  std::map<std::string, size_t> counts;
  for (const RequestRecord& record : records) {
    if (record.outcome != Outcome::kOk) ++counts[absl::StrCat("status ", record.status, ": ", record.error)];
  }
  for (size_t shown = 0; shown < kErrorsShownMax && !counts.empty(); ++shown) {
    auto most = counts.begin();
    for (auto it = counts.begin(); it != counts.end(); ++it) most = it->second > most->second ? it : most;
    std::fprintf(stderr, "%zu x %s\n", most->second, most->first.c_str());
    counts.erase(most);
  }
}

absl::Status Report(const BenchServeOptions& options, const std::vector<RequestRecord>& records) {
  const BenchMetrics metrics = WorkOutMetrics(records, options.percentiles, options.limits_ms);
  ShowErrors(records);
  std::fputs(ReportTable(options, metrics).c_str(), stdout);
  const std::string date = absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone());
  if (options.save_result) {
    RETURN_IF_ERROR(WriteFile(ResultPath(options, date), ReportJson(options, metrics, records, date)));
  }
  if (!options.picture.empty()) {
    const std::string title = absl::StrCat(options.label, ", ", options.model, ", ", options.num_prompts, " requests, ",
                                           options.request_rate, " a second");
    RETURN_IF_ERROR(WriteFile(options.picture, DrawPicture(title, metrics)));
  }
  return metrics.completed > 0 ? absl::OkStatus() : absl::UnavailableError("no request succeeded");
}

absl::Status Run(BenchServeOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<BenchPrompt> prompts, MakePrompts(options));
  RETURN_IF_ERROR(ChooseModel(options));
  if (options.ready_check_timeout_seconds > 0) RETURN_IF_ERROR(AwaitReady(options, prompts.front()));
  if (options.num_warmups > 0) {
    BenchServeOptions warmup = options;
    std::vector<BenchPrompt> warmups;
    for (uint32_t i = 0; i < options.num_warmups; ++i) warmups.push_back(prompts[i % prompts.size()]);
    RETURN_IF_ERROR(RunLoad(warmup, warmups, std::vector<double>(warmups.size(), 0.0), nullptr).status());
  }
  const bool shows = !options.disable_progress && isatty(STDERR_FILENO) != 0;
  std::function<void(const LoadProgress&)> on_progress;
  if (shows) on_progress = ShowProgress;
  const std::vector<double> arrivals =
      ArrivalSeconds(prompts.size(), options.request_rate, options.burstiness, options.seed);
  ASSIGN_OR_RETURN(const std::vector<RequestRecord> records, RunLoad(options, prompts, arrivals, on_progress));
  return Report(options, records);
}

}  // namespace

int RunBenchServe(const std::vector<std::string>& arguments) {
  BenchServeOptions options;
  if (const auto exit = ParseBenchServeOptions(arguments, options); exit.has_value()) return *exit;
  absl::Status status = CheckOptions(options);
  const bool usage = !status.ok();
  if (status.ok()) status = Run(options);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "quicksilver bench serve: %s\n", std::string(status.message()).c_str());
  const bool wrong_input = usage || absl::IsInvalidArgument(status) || absl::IsNotFound(status);
  return wrong_input ? kExitUsage : kExitInternal;
}

}  // namespace quicksilver
