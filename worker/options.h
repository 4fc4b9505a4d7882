#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace quicksilver {

/// The settings of the worker's program: declared here, read in main.cc, nowhere else. 0 of a size means: chosen from
/// the model and the machine.
struct WorkerOptions {
  std::string model;
  std::string served_model_name;
  std::string group_name;
  int tensor_parallel_size = 1;
  std::string listen = "127.0.0.1:7070";
  std::string metrics_listen = "127.0.0.1:9092";
  std::string device = "auto";
  std::vector<int32_t> devices;  ///< CUDA device of each rank, in turn. Empty: rank r takes device r.
  std::string dtype = "auto";
  std::string quantization = "none";
  std::string deterministic = "auto";
  double device_memory_fraction = 0.9;
  std::string kernel_overlap = "on";
  int threads = 0;
  int32_t kv_pages = 0;
  int64_t kv_tokens = 0;
  int32_t page_size = 0;
  int32_t sequences_max = 64;
  int32_t waiting_max = 256;
  int32_t step_rows_max = 0;
  int32_t step_time_target_ms = 0;
  std::string prefix_cache = "on";
  int32_t block_length = 0;
  int32_t mask_id = -1;  ///< -1: what the checkpoint says.
  bool expert_parallel = false;
  int32_t steps_per_launch = 0;
  double formation_timeout_seconds = 120;
  double peer_timeout_seconds = 5;
  double drain_timeout_seconds = 120;
  std::string collective_hostname;
  std::string collective_interface;
  std::string collective_wait = "auto";
  std::string collectives = "auto";
  std::string nccl_library;
  std::string log_level = "info";
  std::string failpoints;

  // Set by the launcher for the ranks that it starts; by hand when the ranks of a group run on several hosts.
  int rank = -1;  ///< -1: this process is the launcher.
  uint64_t epoch = 1;
  uint64_t restarts = 0;  ///< Formations of this launcher before this one.
  std::string group_address;
  std::vector<int32_t> unhealthy_devices;  ///< Of `devices`, those that failed too often.
  std::string planned_device;              ///< What the launcher resolved --device to; empty: nobody did.
  int64_t planned_pages = 0;               ///< KV pages that the launcher planned for every rank.
};

/// Reads flags, environment and file into `options`; the exit code when the program is to end now.
std::optional<int> ReadOptions(int argc, const char* const* argv, WorkerOptions& options);

}  // namespace quicksilver
