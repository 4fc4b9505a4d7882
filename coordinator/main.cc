#include <grpc/support/log.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/failpoint.h"
#include "common/http/server.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/options.h"
#include "coordinator/frontend/grpc/grpc_server.h"
#include "coordinator/frontend/http/openai_frontend.h"
#include "coordinator/metrics.h"
#include "coordinator/options.h"
#include "coordinator/service/inference_service.h"
#include "coordinator/text/text.h"

namespace quicksilver {
namespace {

class CountingObserver : public OpenAiObserver {
 public:
  explicit CountingObserver(Metrics& metrics) : metrics_(metrics) {}
  void OnRequest(const std::string& route, int code, const std::string& finish_reason) override {
    metrics_.CountRequest(route, code, finish_reason);
  }
  void OnClientGone() override { metrics_.client_disconnects.Increment(); }
  void OnSlowClient() override { metrics_.slow_client_disconnects.Increment(); }
  void OnSdkRetry() override { metrics_.sdk_retries.Increment(); }

 private:
  Metrics& metrics_;
};

// Prompts live in this process's memory alone.
void ForbidDumps() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
  prctl(PR_SET_DUMPABLE, 0);
}

// Every connection is a descriptor, and the usual soft limit of 1024 is far below connections_max.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// gRPC's own complaints become lines of our log; what Listen() cannot bind it says itself.
void TakeOverGrpcLog(bool silent) {
  gpr_set_log_function(silent ? [](gpr_log_func_args*) {} : [](gpr_log_func_args* args) {
    Log(args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug, args->message,
        {{"logger", "grpc"}});
  });
}

// The signals that end the program, taken by the main thread alone.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }
  /// The signal that came within `timeout`, or 0.
  int Wait(absl::Duration timeout) {
    const absl::Duration end = MonotonicNow() + timeout;
    for (;;) {
      const timespec left = absl::ToTimespec(std::max(end - MonotonicNow(), absl::ZeroDuration()));
      const int signal = sigtimedwait(&set_, nullptr, &left);
      if (signal > 0) return signal;
      if (MonotonicNow() >= end) return 0;
    }
  }

 private:
  sigset_t set_;
};

// On the monotonic clock, UTC.
absl::Duration LastMidnight() {
  const absl::Duration since = (absl::Now() - absl::UnixEpoch()) % absl::Hours(24);
  return MonotonicNow() - since;
}

InferenceOptions ServiceOptions(const CoordinatorOptions& options) {
  InferenceOptions service;
  service.dispatcher = {.queue_requests_max = options.queue_requests_max,
                        .queue_tokens_max = options.queue_tokens_max,
                        .queue_time_max = absl::Seconds(options.queue_seconds_max),
                        .request_time_max = absl::Seconds(options.request_seconds_max),
                        .lease = absl::Seconds(options.lease_seconds),
                        .resume_wait = absl::Seconds(options.resume_wait_seconds),
                        .tenants = options.tenants};
  service.dispatcher.tenants.midnight = LastMidnight();
  service.cluster.discovery.sources = options.worker_sources;
  service.cluster.discovery.interval = absl::Seconds(options.discovery_seconds);
  service.cluster.coordinator = absl::StrCat("coordinator-", getpid());
  service.served_model_name = options.served_model_name;
  service.model_aliases = options.model_aliases;
  service.sampling = {options.default_temperature, options.default_top_p};
  service.tokenizer_threads = options.tokenizer_threads;
  service.tokenizer_queue_max = options.tokenizer_queue_max;
  return service;
}

// The label of metrics: what the operator calls the model.
std::string ModelLabel(const CoordinatorOptions& options) {
  if (!options.served_model_name.empty()) return options.served_model_name;
  std::string path = options.model;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

std::vector<std::string> TenantNames(const CoordinatorOptions& options) {
  std::vector<std::string> names = {"default"};
  for (const auto& [name, limits] : options.tenants.tenants) names.push_back(name);
  return names;
}

http::ServerOptions HttpOptions(const CoordinatorOptions& options, const std::string& flag, const std::string& listen) {
  const HostPort address = *ParseHostPort(flag, listen);
  http::ServerOptions server;
  server.address = address.host;
  server.port = address.port;
  server.connections_max = options.connections_max;
  server.connections_per_address_max = options.connections_per_address_max;
  server.limits.body_bytes_max = options.body_bytes_max;
  server.write_stall_timeout = absl::Seconds(options.write_stall_seconds);
  return server;
}

// Every part of the running program, in the order in which they need each other.
struct Program {
  Program(const CoordinatorOptions& o, std::shared_ptr<const TextModel> text)
      : metrics(ModelLabel(o), TenantNames(o)),
        service(InferenceService::Create(ServiceOptions(o), std::move(text), metrics)),
        observer(metrics),
        frontend(
            *service,
            {.limits = {.choices_max = o.choices_max, .messages_max = o.messages_max, .strict_params = o.strict_params},
             .version = VersionString(),
             .tenant_header = o.tenant_header},
            observer) {}

  absl::Status Listen(const CoordinatorOptions& o) {
    http::ServerOptions api_options = HttpOptions(o, "--http-listen", o.http_listen);
    api_options.threads = o.http_threads;
    frontend.Configure(api_options);
    api = std::make_unique<http::Server>(std::move(api_options));
    frontend.Register(*api);
    pages = std::make_unique<http::Server>(HttpOptions(o, "--metrics-listen", o.metrics_listen));
    frontend.RegisterHealth(*pages);
    pages->Route("GET", "/metrics", [this](const http::Request&) {
      metrics.stream_buffered_bytes.Set(static_cast<double>(api->buffered_bytes()));
      http::Response response;
      response.content_type = kMetricsContentType;
      response.body = RenderMetrics(metrics.registry());
      return response;
    });
    if (absl::Status status = pages->Start(); !status.ok()) return status;
    const HostPort grpc_address = *ParseHostPort("--grpc-listen", o.grpc_listen);
    GrpcServerOptions grpc_options{
        .listen = o.grpc_listen,
        .reflection = o.grpc_reflection == "on" || (o.grpc_reflection == "auto" && IsLoopback(grpc_address.host)),
        .write_stall_timeout = absl::Seconds(o.write_stall_seconds)};
    grpc_options.tenant_header = o.tenant_header;
    grpc_options.limits.choices_max = o.choices_max;
    grpc_options.limits.messages_max = static_cast<int>(o.messages_max);
    absl::StatusOr<std::unique_ptr<GrpcServer>> started = GrpcServer::Start(grpc_options, *service, metrics);
    if (!started.ok()) return started.status();
    grpc = std::move(*started);
    return api->Start();
  }

  Metrics metrics;
  std::unique_ptr<InferenceService> service;
  CountingObserver observer;
  OpenAiFrontend frontend;
  std::unique_ptr<http::Server> pages;
  std::unique_ptr<GrpcServer> grpc;
  std::unique_ptr<http::Server> api;
};

// A second signal means now.
[[noreturn]] void LeaveAtOnce(int signal) {
  LogWarning("second signal: leaving without draining", {{"signal", signal}});
  _exit(128 + signal);
}

// Returns whether every request came to its end.
bool Drain(Program& program, const CoordinatorOptions& options, StopSignals& signals) {
  LogInfo("stopping: not ready any more, still accepting", {{"seconds", options.lame_duck_seconds}});
  program.service->BeginLameDuck();
  program.grpc->UpdateHealth();
  if (const int again = signals.Wait(absl::Seconds(options.lame_duck_seconds))) LeaveAtOnce(again);
  LogInfo("draining", {{"seconds_max", options.drain_seconds}});
  program.service->BeginDrain();
  const absl::Duration end = MonotonicNow() + absl::Seconds(options.drain_seconds);
  bool idle = program.service->WaitIdle(absl::ZeroDuration());
  while (!idle && MonotonicNow() < end) {
    if (const int again = signals.Wait(absl::Milliseconds(50))) LeaveAtOnce(again);
    idle = program.service->WaitIdle(absl::ZeroDuration());
  }
  // What was generated is still on its way to slow readers.
  program.api->Stop(absl::Seconds(5));
  program.grpc->Stop(absl::Seconds(5));
  program.pages->Stop(absl::Seconds(1));
  LogInfo(idle ? "drained" : "stopped with requests cut off");
  return idle;
}

int Main(int argc, char** argv) {
  ForbidDumps();
  RaiseDescriptorLimit();
  StopSignals signals;
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);  // gRPC's own locks.
  CoordinatorOptions options;
  if (const std::optional<int> exit = ReadOptions(argc, argv, options)) return *exit;
  if (const absl::Status status = InitFailpoints(QS_FAILPOINTS_COMPILED_IN, options.failpoints, 0); !status.ok()) {
    std::cerr << "quicksilver-coordinator: " << status.message() << "\n";
    return kExitUsage;
  }
  InitLog("coordinator", options.log_level);
  absl::StatusOr<std::shared_ptr<const TextModel>> text = TextModel::Load(options.model);
  if (!text.ok()) {
    std::cerr << "quicksilver-coordinator: " << text.status().message() << "\n";
    return kExitModel;
  }
  TakeOverGrpcLog(/*silent=*/true);
  // Never destroyed, and main() ends with _exit: gRPC 1.51 sometimes aborts when its last channel goes while another of
  // its threads is still in the completion queue (grpc_cq_internal_unref; one early end in a hundred on a busy
  // machine).
  Program& program = *new Program(options, *std::move(text));
  if (const absl::Status status = program.Listen(options); !status.ok()) {
    std::cerr << "quicksilver-coordinator: " << status.message() << "\n";
    return absl::IsInvalidArgument(status) ? kExitUsage : kExitBind;
  }
  TakeOverGrpcLog(/*silent=*/false);
  LogInfo("serving", {{"http", options.http_listen},
                      {"grpc", options.grpc_listen},
                      {"metrics", options.metrics_listen},
                      {"workers", absl::StrJoin(options.workers, ",")}});
  while (signals.Wait(absl::Hours(1)) == 0) {
  }
  return Drain(program, options, signals) ? kExitOk : kExitInternal;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) {
  const int code = quicksilver::Main(argc, argv);
  std::cout.flush();
  _exit(code);
}
