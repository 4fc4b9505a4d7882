#include "coordinator/metrics.h"

#include "common/options.h"

namespace quicksilver {
namespace {

using Buckets = std::vector<double>;

const Buckets kFirstToken = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                             1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kLatency = {.05, .1, .2, .3, .5, .8, 1,   1.5, 2,   2.5, 5,    10,
                          15,  20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kResume = {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10, 20, 30, 60};
const Buckets kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
const Buckets kChoices = {1, 2, 3, 4, 5, 8, 16, 32, 64, 128};
const Buckets kTokensPerForward = {.25, .5, .75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64};

// A label value that a caller made up must not make a new series.
constexpr char kOther[] = "other";
constexpr const char* kRoutes[] = {"/v1/chat/completions", "/v1/completions", "/v1/fim/completions", "/v1/models",
                                   "/v1/models/{id}",      "Generate",        "ListModels",          "unknown"};
constexpr int kCodes[] = {200, 400, 404, 405, 408, 413, 415, 429, 431, 499, 500, 501, 503, 504};

}  // namespace

Metrics::Metrics(const std::string& model_name, const std::vector<std::string>& tenants)
    : model_({{"model_name", model_name}}),
      requests_waiting(AddGauge("quicksilver_num_requests_waiting", "Requests that no group has begun.")),
      requests_running(AddGauge("quicksilver_num_requests_running", "Requests with a sequence on a group.")),
      rejections{AddRejection("queue_full"), AddRejection("deadline"),  AddRejection("draining"),
                 AddRejection("no_worker"),  AddRejection("too_large"), AddRejection("rate_limit"),
                 AddRejection("quota")},
      requests_resumed{AddResume("lost"), AddResume("moved")},
      resume_duration_seconds(AddHistogram("quicksilver_resume_duration_seconds",
                                           "From the loss of a group, or the decision to move, to the first update "
                                           "after it.",
                                           kResume)),
      resume_divergences(AddCounter("quicksilver_resume_divergences_total",
                                    "Requests that failed since a group went on with other tokens.")),
      time_to_first_token_seconds(AddHistogram("quicksilver_time_to_first_token_seconds",
                                               "From acceptance to the first committed token.", kFirstToken)),
      time_to_first_block_seconds(AddHistogram("quicksilver_time_to_first_block_seconds",
                                               "From acceptance to a choice's first final token.", kFirstToken)),
      e2e_request_latency_seconds(AddHistogram("quicksilver_e2e_request_latency_seconds",
                                               "From acceptance to the end of the last choice.", kLatency)),
      request_queue_time_seconds(AddHistogram("quicksilver_request_queue_time_seconds",
                                              "From acceptance to the first sequence on a group.", kLatency)),
      request_prefill_time_seconds(
          AddHistogram("quicksilver_request_prefill_time_seconds", "Prefill, as the group says.", kLatency)),
      request_decode_time_seconds(
          AddHistogram("quicksilver_request_decode_time_seconds", "Decoding of a choice.", kLatency)),
      request_prompt_tokens(AddHistogram("quicksilver_request_prompt_tokens", "Prompt tokens of a request.", kTokens)),
      request_generation_tokens(
          AddHistogram("quicksilver_request_generation_tokens", "Tokens of one choice's answer.", kTokens)),
      request_params_n(AddHistogram("quicksilver_request_params_n", "Choices asked for.", kChoices)),
      request_params_max_tokens(
          AddHistogram("quicksilver_request_params_max_tokens", "max_tokens after defaults.", kTokens)),
      tokens_per_forward(AddHistogram("quicksilver_tokens_per_forward",
                                      "Tokens of a choice's answer by its forward passes.", kTokensPerForward)),
      client_disconnects(AddCounter("quicksilver_client_disconnects_total", "Clients that went away before the end.")),
      slow_client_disconnects(
          AddCounter("quicksilver_slow_client_disconnects_total", "Clients cut off since they read too slowly.")),
      sdk_retries(AddCounter("quicksilver_sdk_retries_total", "Requests that say that they are a retry.")),
      numerical_errors(AddCounter("quicksilver_numerical_errors_total", "Requests that met NaN or Inf.")),
      stream_buffered_bytes(AddGauge("quicksilver_stream_buffered_bytes", "Stream data that waits for slow clients.")),
      group_families_{
          AddGaugeFamily("quicksilver_worker_up", "1 while the group is ready."),
          AddGaugeFamily("quicksilver_group_epoch", "Incarnation of the group."),
          AddGaugeFamily("quicksilver_worker_group_size", "Ranks of the group that are there."),
          AddGaugeFamily("quicksilver_worker_group_size_desired", "Ranks that the group should have."),
          AddGaugeFamily("quicksilver_kv_cache_usage_ratio", "KV pages in use."),
      } {
  for (const std::string& tenant : tenants) {
    if (tenants_.size() < kTenantSeriesMax) tenants_.emplace(tenant, AddTenant(tenant));
  }
  tenants_.emplace(kOther, AddTenant(kOther));
  requests_ = &prometheus::BuildCounter()
                   .Name("quicksilver_requests_total")
                   .Help("Requests that have ended.")
                   .Labels(model_)
                   .Register(*registry_);
  {
    MutexLock lock(mu_);
    for (const char* route : kRoutes) {
      for (const int code : kCodes) {
        if (code != 200) RequestCounter({route, code, ""});
      }
      RequestCounter({route, 200, "stop"});
      RequestCounter({route, 200, "length"});
    }
  }
  prometheus::BuildGauge()
      .Name("quicksilver_build_info")
      .Help("What is running.")
      .Labels(model_)
      .Register(*registry_)
      .Add({{"version", VersionString()}, {"commit", ""}, {"cuda", ""}, {"compute_capability", ""}})
      .Set(1);
}

void Metrics::CountRequest(const std::string& route, int code, const std::string& finish_reason) {
  bool known = false;
  for (const char* each : kRoutes) known = known || route == each;
  MutexLock lock(mu_);
  RequestCounter({known ? route : "unknown", code, finish_reason}).Increment();
}

prometheus::Counter& Metrics::RequestCounter(const RequestLabels& labels) {
  prometheus::Counter*& counter = request_counters_[labels];
  if (counter == nullptr) {
    const auto& [route, code, finish_reason] = labels;
    counter = &requests_->Add({{"route", route}, {"code", std::to_string(code)}, {"finish_reason", finish_reason}});
  }
  return *counter;
}

const Metrics::Tenant& Metrics::tenant(const std::string& name) const {
  const auto it = tenants_.find(name);
  return it == tenants_.end() ? tenants_.at(kOther) : it->second;
}

Metrics::Tenant Metrics::AddTenant(const std::string& name) {
  return {
      &AddCounter("quicksilver_prompt_tokens_total", "Prompt tokens of placed requests.", "tenant", name),
      &AddCounter("quicksilver_generation_tokens_total", "Tokens of answers, all choices.", "tenant", name),
      &AddCounter("quicksilver_cached_prompt_tokens_total", "Prompt tokens that needed no prefill.", "tenant", name)};
}

std::unique_ptr<Metrics::Group> Metrics::AddGroup(const std::string& address) {
  return std::make_unique<Group>(*this, address);
}

Metrics::Group::Group(Metrics& metrics, const std::string& address)
    : metrics_(metrics),
      up(metrics.group_families_.up.Add({{"group", address}})),
      epoch(metrics.group_families_.epoch.Add({{"group", address}})),
      size(metrics.group_families_.size.Add({{"group", address}})),
      size_desired(metrics.group_families_.size_desired.Add({{"group", address}})),
      kv_cache_usage_ratio(metrics.group_families_.kv_cache_usage_ratio.Add({{"pool", address}})) {}

Metrics::Group::~Group() {
  metrics_.group_families_.up.Remove(&up);
  metrics_.group_families_.epoch.Remove(&epoch);
  metrics_.group_families_.size.Remove(&size);
  metrics_.group_families_.size_desired.Remove(&size_desired);
  metrics_.group_families_.kv_cache_usage_ratio.Remove(&kv_cache_usage_ratio);
}

prometheus::Counter* Metrics::AddRejection(const char* reason) {
  return &AddCounter("quicksilver_admission_rejections_total", "Requests turned away before any work.", "reason",
                     reason);
}

prometheus::Counter* Metrics::AddResume(const char* reason) {
  return &AddCounter("quicksilver_requests_resumed_total", "Sequences that went on on another group.", "reason",
                     reason);
}

prometheus::Counter& Metrics::AddCounter(const char* name, const char* help, const char* label,
                                         const std::string& value) {
  auto& family = prometheus::BuildCounter().Name(name).Help(help).Labels(model_).Register(*registry_);
  return label == nullptr ? family.Add({}) : family.Add({{label, value}});
}

prometheus::Gauge& Metrics::AddGauge(const char* name, const char* help) { return AddGaugeFamily(name, help).Add({}); }

prometheus::Family<prometheus::Gauge>& Metrics::AddGaugeFamily(const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Labels(model_).Register(*registry_);
}

prometheus::Histogram& Metrics::AddHistogram(const char* name, const char* help, const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Labels(model_).Register(*registry_).Add({}, buckets);
}

}  // namespace quicksilver
