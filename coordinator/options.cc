#include "coordinator/options.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "coordinator/tenants_file.h"

namespace quicksilver {
namespace {

void AddListeners(CLI::App& app, CoordinatorOptions& o) {
  const char* group = "Addresses";
  app.add_option("--http-listen", o.http_listen, "Address of the OpenAI-compatible API")
      ->capture_default_str()
      ->group(group);
  app.add_option("--grpc-listen", o.grpc_listen, "Address of quicksilver.v1.Inference")
      ->capture_default_str()
      ->group(group);
  app.add_option("--metrics-listen", o.metrics_listen, "Address of /metrics and the health pages")
      ->capture_default_str()
      ->group(group);
  app.add_option("--http-threads", o.http_threads, "Threads of the HTTP server")
      ->capture_default_str()
      ->check(CLI::Range(1, 64))
      ->group(group);
  app.add_option("--connections-max", o.connections_max, "HTTP connections at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000))
      ->group(group);
  app.add_option("--connections-per-address-max", o.connections_per_address_max, "HTTP connections of one address")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000))
      ->group(group);
  app.add_option("--body-bytes-max", o.body_bytes_max, "Largest HTTP request body; more is 413")
      ->capture_default_str()
      ->check(CLI::Range(1024, 64 << 20))
      ->group(group);
  app.add_option("--write-stall-seconds", o.write_stall_seconds, "A client that takes nothing for so long is cut off")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 3600.0))
      ->group(group);
  app.add_option("--grpc-reflection", o.grpc_reflection, "Server reflection; auto: on when gRPC listens on loopback")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->group(group);
}

void AddLimits(CLI::App& app, CoordinatorOptions& o) {
  const char* group = "Limits";
  app.add_option("--queue-requests-max", o.queue_requests_max,
                 "Requests of a model that wait for a group; more are 503")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000))
      ->group(group);
  app.add_option("--queue-tokens-max", o.queue_tokens_max, "Prompt and answer tokens of those")
      ->capture_default_str()
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 40))
      ->group(group);
  app.add_option("--queue-seconds-max", o.queue_seconds_max, "Longest wait for a group, expected or real")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 3600.0))
      ->group(group);
  app.add_option("--request-seconds-max", o.request_seconds_max, "Deadline of requests that name none")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 86400.0))
      ->group(group);
  app.add_option("--lease-seconds", o.lease_seconds, "A group that is silent for so long is lost")
      ->capture_default_str()
      ->check(CLI::Range(1.5, 60.0))
      ->group(group);
  app.add_option("--resume-wait-seconds", o.resume_wait_seconds,
                 "A request that lost its group waits so long for another one")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 3600.0))
      ->group(group);
  app.add_option("--tokenizer-threads", o.tokenizer_threads, "Threads that tokenise prompts")
      ->capture_default_str()
      ->check(CLI::Range(1, 64))
      ->group(group);
  app.add_option("--tokenizer-queue-max", o.tokenizer_queue_max, "Requests that wait for those threads; more are 503")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000))
      ->group(group);
  app.add_option("--choices-max", o.choices_max, "Largest n")
      ->capture_default_str()
      ->check(CLI::Range(1, 128))
      ->group(group);
  app.add_option("--messages-max", o.messages_max, "Messages of one chat request")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000))
      ->group(group);
}

void AddDefaults(CLI::App& app, CoordinatorOptions& o) {
  const char* group = "Requests";
  app.add_option("--default-temperature", o.default_temperature, "Temperature of requests that name none")
      ->capture_default_str()
      ->check(CLI::Range(0.0f, 2.0f))
      ->group(group);
  app.add_option("--default-top-p", o.default_top_p, "top_p of requests that name none")
      ->capture_default_str()
      ->check(CLI::Range(0.001f, 1.0f))
      ->group(group);
  app.add_flag("--strict-params", o.strict_params, "Unknown top-level fields are 400 instead of ignored")->group(group);
}

void AddProcess(CLI::App& app, CoordinatorOptions& o) {
  const char* group = "Process";
  app.add_option("--lame-duck-seconds", o.lame_duck_seconds, "After SIGTERM: not ready, but still accepting")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 600.0))
      ->group(group);
  app.add_option("--drain-seconds", o.drain_seconds, "Behind that: what runs may finish")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 3600.0))
      ->group(group);
  app.add_option("--log-level", o.log_level, "Least level that is logged")
      ->capture_default_str()
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->group(group);
  app.add_option("--failpoints", o.failpoints, "For tests: where to fail; refused by programs without failpoints")
      ->group(group);
}

void AddTenants(CLI::App& app, CoordinatorOptions& o) {
  const char* group = "Tenants";
  app.add_option("--tenants", o.tenants_file, "YAML file with the weights and limits of tenants; default: no limits")
      ->group(group);
  app.add_option("--tenant-header", o.tenant_header,
                 "Header with the tenant's name, for use behind a proxy that sets it; default: all are one tenant")
      ->group(group);
}

absl::Status CheckTenantHeader(const std::string& name) {
  for (const char c : name) {
    // gRPC's rule for metadata keys, which are lower case; HTTP does not care about the case.
    const bool fine =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
    if (!fine) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tenant-header: '", name, "' is not made of letters, digits, '-', '_' and '.'"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAddresses(const CoordinatorOptions& options) {
  for (const auto& [flag, value] : {std::pair<const char*, std::string>{"--http-listen", options.http_listen},
                                    {"--grpc-listen", options.grpc_listen},
                                    {"--metrics-listen", options.metrics_listen}}) {
    if (const auto parsed = ParseHostPort(flag, value); !parsed.ok()) return parsed.status();
  }
  return absl::OkStatus();
}

// What is not a flag's own range.
absl::Status Finish(CoordinatorOptions& options) {
  RETURN_IF_ERROR(CheckAddresses(options));
  RETURN_IF_ERROR(CheckTenantHeader(options.tenant_header));
  options.tenant_header = absl::AsciiStrToLower(options.tenant_header);
  for (const std::string& worker : options.workers) {
    ASSIGN_OR_RETURN(WorkerSource source, ParseWorkerSource("--workers", worker));
    options.worker_sources.push_back(std::move(source));
  }
  if (!options.tenants_file.empty()) {
    ASSIGN_OR_RETURN(options.tenants, ReadTenantsFile(options.tenants_file));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<int> ReadOptions(int argc, const char* const* argv, CoordinatorOptions& options) {
  CLI::App app(
      "Takes requests over HTTP and gRPC and spreads them over worker groups.\n"
      "Every option is also read from the environment (--foo-bar as QUICKSILVER_FOO_BAR) and from the file of "
      "--config.",
      "quicksilver-coordinator");
  app.add_option("--model", options.model, "Directory with tokenizer.json and tokenizer_config.json")->required();
  app.add_option("--workers", options.workers,
                 "HOST:PORT of each worker group's leader, or dns:///NAME:PORT for a name whose every address is one; "
                 "separated by commas")
      ->required()
      ->delimiter(',');
  app.add_option("--discovery-seconds", options.discovery_seconds, "Between two look-ups of dns:/// names")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 3600.0));
  app.add_option("--served-model-name", options.served_model_name,
                 "Groups that serve a model of another name are refused; default: any");
  app.add_option("--model-alias", options.model_aliases, "Another name for the served model; may be repeated")
      ->delimiter(',');
  AddListeners(app, options);
  AddLimits(app, options);
  AddTenants(app, options);
  AddDefaults(app, options);
  AddProcess(app, options);
  if (const std::optional<int> exit = ParseOptions(app, argc, argv)) return exit;
  if (const absl::Status status = Finish(options); !status.ok()) {
    std::cerr << app.get_name() << ": " << status.message() << "; see --help\n";
    return kExitUsage;
  }
  return std::nullopt;
}

}  // namespace quicksilver
