#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>

#include "common/mutex.h"
#include "worker/engine/engine.h"

namespace quicksilver {

/// A snapshot of what the worker tells about itself.
struct WorkerReading {
  bool up = false;  ///< The group is ready.
  int ranks = 0;    ///< Ranks that are there.
  int ranks_desired = 0;
  uint64_t epoch = 0;
  uint64_t restarts = 0;
  EngineLoad load;
};

/// Everything the worker counts (serving.md §4.2); the only place that spells the names. Thread-safe.
class WorkerMetrics {
 private:
  std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  const std::map<std::string, std::string> labels_;

 public:
  WorkerMetrics(const std::string& model_name, const std::string& group_name, int page_size, uint64_t pages);

  /// Takes over `reading` and returns the page in Prometheus' text format.
  std::string Render(const WorkerReading& reading);

  /// Between ranks on processors; a device runs its collectives without the host.
  void ObserveAllReduce(double seconds) { all_reduce_.Observe(seconds); }
  void ObserveAllGather(double seconds) { all_gather_.Observe(seconds); }

 private:
  prometheus::Gauge& AddGauge(const char* name, const char* help, const std::map<std::string, std::string>& more = {});
  prometheus::Counter& AddCounter(const char* name, const char* help,
                                  const std::map<std::string, std::string>& more = {});

  const std::map<std::string, std::string> group_;
  prometheus::Gauge& requests_running_;
  prometheus::Gauge& requests_waiting_;
  prometheus::Gauge& requests_preempted_;
  prometheus::Gauge& kv_cache_usage_ratio_;
  prometheus::Gauge& kv_cache_cached_ratio_;
  prometheus::Counter& prefix_queries_;
  prometheus::Counter& prefix_hits_;
  prometheus::Counter& prefix_evictions_;
  prometheus::Counter& preemptions_;
  prometheus::Counter& numerical_errors_;
  prometheus::Counter& forward_passes_;
  prometheus::Counter& engine_steps_;
  prometheus::Gauge& engine_last_step_;
  prometheus::Gauge& up_;
  prometheus::Gauge& group_size_;
  prometheus::Gauge& group_size_desired_;
  prometheus::Gauge& epoch_;
  prometheus::Counter& restarts_;
  prometheus::Family<prometheus::Histogram>& collective_duration_;
  prometheus::Histogram& all_reduce_;
  prometheus::Histogram& all_gather_;
  Mutex mutex_;  // Renderings one after the other: counters move by differences.
};

}  // namespace quicksilver
