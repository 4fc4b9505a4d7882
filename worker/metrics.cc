#include "worker/metrics.h"

#include <algorithm>

#include "common/metrics.h"
#include "common/options.h"

namespace quicksilver {
namespace {

const prometheus::Histogram::BucketBoundaries kCollectiveSeconds = {1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
                                                                    1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2,   1};

void Raise(prometheus::Counter& counter, uint64_t value) {
  const double more = static_cast<double>(value) - counter.Value();
  if (more > 0) counter.Increment(more);
}

}  // namespace

WorkerMetrics::WorkerMetrics(const std::string& model_name, const std::string& group_name, int page_size,
                             uint64_t pages)
    : labels_({{"model_name", model_name}}),
      group_({{"group", group_name}}),
      requests_running_(AddGauge("quicksilver_num_requests_running", "Sequences that hold KV pages.")),
      requests_waiting_(AddGauge("quicksilver_num_requests_waiting", "Sequences that wait for a place or for pages.")),
      requests_preempted_(AddGauge("quicksilver_num_requests_preempted",
                                   "Of those that wait, sequences that have lost their pages to others.")),
      kv_cache_usage_ratio_(AddGauge("quicksilver_kv_cache_usage_ratio", "KV pages in use.", {{"pool", group_name}})),
      kv_cache_cached_ratio_(AddGauge("quicksilver_kv_cache_cached_ratio",
                                      "KV pages that no sequence uses and that hold prefixes for reuse.",
                                      {{"pool", group_name}})),
      prefix_queries_(AddCounter("quicksilver_prefix_cache_queries_total",
                                 "Tokens that starting sequences looked for in the prefix cache.")),
      prefix_hits_(AddCounter("quicksilver_prefix_cache_hits_total", "Tokens that they found there.")),
      prefix_evictions_(
          AddCounter("quicksilver_prefix_cache_evictions_total", "Cached KV pages that were given up for others.")),
      preemptions_(AddCounter("quicksilver_preemptions_total", "Times that a sequence lost its pages to others.",
                              {{"reason", "kv_pages"}})),
      numerical_errors_(AddCounter("quicksilver_numerical_errors_total",
                                   "Sequences that ended because a logit was not finite.", {{"reason", "logits"}})),
      forward_passes_(
          AddCounter("quicksilver_forward_passes_total", "Forward passes of the group.", {{"phase", "mixed"}})),
      engine_steps_(AddCounter("quicksilver_engine_step_total", "Steps of the engine since the group formed.")),
      engine_last_step_(
          AddGauge("quicksilver_engine_last_step_timestamp_seconds", "When the last step ended; 0: none yet.")),
      up_(AddGauge("quicksilver_worker_up", "1 while the group is ready.", group_)),
      group_size_(AddGauge("quicksilver_worker_group_size", "Ranks of the group that are there.", group_)),
      group_size_desired_(
          AddGauge("quicksilver_worker_group_size_desired", "Ranks that the group should have.", group_)),
      epoch_(AddGauge("quicksilver_group_epoch", "Incarnation of the group.", group_)),
      restarts_(AddCounter("quicksilver_worker_restarts_total", "Formations of the group but the first.", group_)),
      collective_duration_(prometheus::BuildHistogram()
                               .Name("quicksilver_collective_duration_seconds")
                               .Help("Time that one collective takes, the wait for the other ranks included.")
                               .Labels(labels_)
                               .Register(*registry_)),
      all_reduce_(collective_duration_.Add({{"op", "all_reduce"}}, kCollectiveSeconds)),
      all_gather_(collective_duration_.Add({{"op", "all_gather"}}, kCollectiveSeconds)) {
  AddGauge("quicksilver_cache_config_info", "Size of the KV cache.",
           {{"block_size", std::to_string(page_size)}, {"num_gpu_blocks", std::to_string(pages)}})
      .Set(1);
  AddGauge("quicksilver_build_info", "What is running.",
           {{"version", VersionString()}, {"commit", ""}, {"cuda", ""}, {"compute_capability", ""}})
      .Set(1);
}

std::string WorkerMetrics::Render(const WorkerReading& reading) {
  MutexLock lock(mutex_);
  const EngineLoad& load = reading.load;
  requests_running_.Set(load.running);
  requests_waiting_.Set(load.waiting);
  requests_preempted_.Set(load.preempted);
  const double total = std::max(1.0, static_cast<double>(load.pages_total));
  kv_cache_usage_ratio_.Set(static_cast<double>(load.pages_total - load.pages_free) / total);
  kv_cache_cached_ratio_.Set(static_cast<double>(load.pages_cached) / total);
  Raise(prefix_queries_, load.prefix_query_tokens);
  Raise(prefix_hits_, load.prefix_hit_tokens);
  Raise(prefix_evictions_, load.evictions);
  Raise(preemptions_, load.preemptions);
  Raise(numerical_errors_, load.numerical_errors);
  Raise(forward_passes_, load.steps);
  Raise(engine_steps_, load.steps);
  const bool stepped = load.last_step > absl::UnixEpoch();
  engine_last_step_.Set(stepped ? absl::ToDoubleSeconds(load.last_step - absl::UnixEpoch()) : 0.0);
  up_.Set(reading.up ? 1 : 0);
  group_size_.Set(reading.ranks);
  group_size_desired_.Set(reading.ranks_desired);
  epoch_.Set(static_cast<double>(reading.epoch));
  Raise(restarts_, reading.restarts);
  return RenderMetrics(*registry_);
}

prometheus::Gauge& WorkerMetrics::AddGauge(const char* name, const char* help,
                                           const std::map<std::string, std::string>& more) {
  return prometheus::BuildGauge().Name(name).Help(help).Labels(labels_).Register(*registry_).Add(more);
}

prometheus::Counter& WorkerMetrics::AddCounter(const char* name, const char* help,
                                               const std::map<std::string, std::string>& more) {
  return prometheus::BuildCounter().Name(name).Help(help).Labels(labels_).Register(*registry_).Add(more);
}

}  // namespace quicksilver
