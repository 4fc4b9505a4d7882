#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common/mutex.h"

namespace quicksilver {

/// Everything the coordinator counts (serving.md §4.2); the only place that spells the names. Every series exists from
/// the start. Thread-safe.
class Metrics {
 public:
  struct Group {
    prometheus::Gauge* up;
    prometheus::Gauge* epoch;
    prometheus::Gauge* size;
    prometheus::Gauge* size_desired;
    prometheus::Gauge* kv_cache_usage_ratio;
  };
  struct Rejections {
    prometheus::Counter* queue_full;
    prometheus::Counter* deadline;
    prometheus::Counter* draining;
    prometheus::Counter* no_worker;
    prometheus::Counter* too_large;
  };

 private:
  std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  const std::map<std::string, std::string> model_;

 public:
  /// `groups`: the configured addresses, in the order of their GroupId.
  Metrics(const std::string& model_name, const std::vector<std::string>& groups);

  /// One request that has ended, on `route` (a pattern, or `unknown`), with an HTTP status or its twin (499: the client
  /// went away). `finish_reason` of the first choice, empty when it failed.
  void CountRequest(const std::string& route, int code, const std::string& finish_reason);
  const prometheus::Registry& registry() const { return *registry_; }

  prometheus::Gauge& requests_waiting;
  prometheus::Gauge& requests_running;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  Rejections rejections;
  prometheus::Histogram& time_to_first_token_seconds;
  prometheus::Histogram& e2e_request_latency_seconds;
  prometheus::Histogram& request_queue_time_seconds;
  prometheus::Histogram& request_prefill_time_seconds;
  prometheus::Histogram& request_decode_time_seconds;
  prometheus::Histogram& request_prompt_tokens;
  prometheus::Histogram& request_generation_tokens;
  prometheus::Histogram& request_params_n;
  prometheus::Histogram& request_params_max_tokens;
  prometheus::Histogram& tokens_per_forward;
  prometheus::Counter& client_disconnects;
  prometheus::Counter& slow_client_disconnects;
  prometheus::Counter& sdk_retries;
  prometheus::Counter& numerical_errors;
  prometheus::Gauge& stream_buffered_bytes;
  std::vector<Group> groups;  ///< By GroupId.

 private:
  using RequestLabels = std::tuple<std::string, int, std::string>;

  prometheus::Counter& AddCounter(const char* name, const char* help, const char* label = nullptr,
                                  const char* value = nullptr);
  prometheus::Gauge& AddGauge(const char* name, const char* help, const char* label = nullptr,
                              const std::string& value = "");
  prometheus::Histogram& AddHistogram(const char* name, const char* help, const std::vector<double>& buckets);
  prometheus::Counter* AddRejection(const char* reason);
  prometheus::Counter& RequestCounter(const RequestLabels& labels) REQUIRES_LOCK(mu_);

  Mutex mu_;
  prometheus::Family<prometheus::Counter>* requests_ = nullptr;
  std::map<RequestLabels, prometheus::Counter*> request_counters_ GUARDED_BY(mu_);
};

}  // namespace quicksilver
