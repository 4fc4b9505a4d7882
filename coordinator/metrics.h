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
  /// The series of one group; they end with this object.
  class Group {
   public:
    Group(Metrics& metrics, const std::string& address);
    ~Group();
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

   private:
    Metrics& metrics_;

   public:
    prometheus::Gauge& up;
    prometheus::Gauge& epoch;
    prometheus::Gauge& size;
    prometheus::Gauge& size_desired;
    prometheus::Gauge& kv_cache_usage_ratio;
  };
  struct Tenant {
    prometheus::Counter* prompt_tokens;
    prometheus::Counter* generation_tokens;
    prometheus::Counter* cached_prompt_tokens;
  };
  struct Rejections {
    prometheus::Counter* queue_full;
    prometheus::Counter* deadline;
    prometheus::Counter* draining;
    prometheus::Counter* no_worker;
    prometheus::Counter* too_large;
    prometheus::Counter* rate_limit;
    prometheus::Counter* quota;
  };
  struct Resumes {
    prometheus::Counter* lost;
    prometheus::Counter* moved;
  };

 private:
  std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  const std::map<std::string, std::string> model_;

 public:
  /// `tenants`: those that have series of their own, the first kTenantSeriesMax of them; all others share the label
  /// `other`.
  explicit Metrics(const std::string& model_name, const std::vector<std::string>& tenants = {});

  static constexpr size_t kTenantSeriesMax = 1000;
  const Tenant& tenant(const std::string& name) const;
  /// `address` is the label. Not two at once for one address.
  std::unique_ptr<Group> AddGroup(const std::string& address);
  /// One request that has ended, on `route` (a pattern, or `unknown`), with an HTTP status or its twin (499: the client
  /// went away). `finish_reason` of the first choice, empty when it failed.
  void CountRequest(const std::string& route, int code, const std::string& finish_reason);
  const prometheus::Registry& registry() const { return *registry_; }

  prometheus::Gauge& requests_waiting;
  prometheus::Gauge& requests_running;
  Rejections rejections;
  Resumes requests_resumed;
  prometheus::Histogram& resume_duration_seconds;
  prometheus::Counter& resume_divergences;
  prometheus::Histogram& time_to_first_token_seconds;
  prometheus::Histogram& time_to_first_block_seconds;
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

 private:
  using RequestLabels = std::tuple<std::string, int, std::string>;

  prometheus::Counter& AddCounter(const char* name, const char* help, const char* label = nullptr,
                                  const std::string& value = "");
  Tenant AddTenant(const std::string& name);
  prometheus::Gauge& AddGauge(const char* name, const char* help);
  prometheus::Histogram& AddHistogram(const char* name, const char* help, const std::vector<double>& buckets);
  prometheus::Counter* AddRejection(const char* reason);
  prometheus::Counter* AddResume(const char* reason);
  prometheus::Counter& RequestCounter(const RequestLabels& labels) REQUIRES_LOCK(mu_);

  // A gauge for each group.
  struct GroupFamilies {
    prometheus::Family<prometheus::Gauge>& up;
    prometheus::Family<prometheus::Gauge>& epoch;
    prometheus::Family<prometheus::Gauge>& size;
    prometheus::Family<prometheus::Gauge>& size_desired;
    prometheus::Family<prometheus::Gauge>& kv_cache_usage_ratio;
  };
  prometheus::Family<prometheus::Gauge>& AddGaugeFamily(const char* name, const char* help);

  const GroupFamilies group_families_;
  std::map<std::string, Tenant> tenants_;  // With "other".
  Mutex mu_;
  prometheus::Family<prometheus::Counter>* requests_ = nullptr;
  std::map<RequestLabels, prometheus::Counter*> request_counters_ GUARDED_BY(mu_);
};

}  // namespace quicksilver
