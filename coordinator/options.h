#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/host_port.h"
#include "coordinator/cluster/discovery.h"
#include "coordinator/core/tenants.h"

namespace quicksilver {

/// The settings of the coordinator's program: declared here, read in main.cc, nowhere else.
struct CoordinatorOptions {
  std::string model;
  std::vector<std::string> workers;
  std::vector<WorkerSource> worker_sources;  ///< `workers`, parsed.
  double discovery_seconds = 5;
  std::string served_model_name;
  std::vector<std::string> model_aliases;
  std::string http_listen = "127.0.0.1:8080";
  std::string grpc_listen = "127.0.0.1:8081";
  std::string metrics_listen = "127.0.0.1:9091";
  int http_threads = 1;
  uint32_t connections_max = 10000;
  uint32_t connections_per_address_max = 256;
  uint32_t body_bytes_max = 8 << 20;
  double write_stall_seconds = 30;
  std::string grpc_reflection = "auto";  ///< on, off, or auto: on when gRPC listens on loopback alone.
  uint32_t queue_requests_max = 1024;
  uint64_t queue_tokens_max = 4 << 20;
  double queue_seconds_max = 60;
  double request_seconds_max = 600;
  double lease_seconds = 5;
  double resume_wait_seconds = 30;
  int tokenizer_threads = 2;
  uint32_t tokenizer_queue_max = 1024;
  std::string tenants_file;
  TenantsOptions tenants;     ///< What is in it; without one nothing is limited.
  std::string tenant_header;  ///< Header or metadata key with the tenant's name. Empty: all are one tenant.
  uint32_t choices_max = 8;
  uint32_t messages_max = 2048;
  float default_temperature = 1.0f;
  float default_top_p = 1.0f;
  bool strict_params = false;
  double lame_duck_seconds = 5;
  double drain_seconds = 120;
  std::string log_level = "info";
  std::string failpoints;
};

/// Reads flags, environment and file into `options`; the exit code when the program is to end now.
std::optional<int> ReadOptions(int argc, const char* const* argv, CoordinatorOptions& options);

}  // namespace quicksilver
