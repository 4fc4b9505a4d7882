#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/bench_serve/answer.h"
#include "tools/bench_serve/dataset.h"
#include "tools/bench_serve/options.h"

namespace quicksilver {

/// How far a run is.
struct LoadProgress {
  size_t total = 0, done = 0, rejected = 0, failed = 0, running = 0;
  uint64_t output_tokens = 0;
  double seconds = 0.0;
};

/// The id of the first model that the server lists.
absl::StatusOr<std::string> FirstModel(const BenchServeOptions& options);

/// Sends `prompts` to the server, the i-th at `arrivals[i]` seconds or as soon after it as max_concurrency allows, and
/// returns what became of each. `on_progress` is called now and then, and at the end. Unavailable: the host has no
/// address. `options` have passed CheckOptions. One thread carries all requests: the caller's.
absl::StatusOr<std::vector<RequestRecord>> RunLoad(const BenchServeOptions& options,
                                                   const std::vector<BenchPrompt>& prompts,
                                                   const std::vector<double>& arrivals,
                                                   const std::function<void(const LoadProgress&)>& on_progress);

}  // namespace quicksilver
