#pragma once

#include <string>

namespace prometheus {
class Registry;
}

namespace quicksilver {

/// The media type of RenderMetrics().
inline constexpr const char* kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of `registry`, the standard process_* ones and the count of lost log lines, in Prometheus' text format 0.0.4. Thread-safe.
/// prometheus::Exposer is not used: its server cannot start beside cuBLASLt.
std::string RenderMetrics(const prometheus::Registry& registry);

}  // namespace quicksilver
