#pragma once

#include <string>

#include "tools/bench_serve/metrics.h"

namespace quicksilver {

/// An SVG picture of a run: output tokens a second, requests that ended each second by outcome, and the median and 99th
/// percentile of ttft and e2el by the second of sending. `title` is text, escaped here. Pure.
std::string DrawPicture(const std::string& title, const BenchMetrics& metrics);

}  // namespace quicksilver
