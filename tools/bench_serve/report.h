#pragma once

#include <string>
#include <vector>

#include "tools/bench_serve/answer.h"
#include "tools/bench_serve/metrics.h"
#include "tools/bench_serve/options.h"

namespace quicksilver {

/// The table that ends a run, in the words of `vllm bench serve`.
std::string ReportTable(const BenchServeOptions& options, const BenchMetrics& metrics);

/// The results as JSON with the keys of `vllm bench serve` and a few of our own. `date`: when the run ended,
/// YYYYmmdd-HHMMSS. With save_detailed each request's own figures, in order of sending.
std::string ReportJson(const BenchServeOptions& options, const BenchMetrics& metrics,
                       const std::vector<RequestRecord>& records, const std::string& date);

/// The file that the results go to.
std::string ResultPath(const BenchServeOptions& options, const std::string& date);

}  // namespace quicksilver
