#include "worker/options.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/options.h"

namespace quicksilver {
namespace {

constexpr int kRanksMax = 64;

void AddModel(CLI::App& app, WorkerOptions& o) {
  const char* group = "Model";
  app.add_option("--model", o.model, "Checkpoint directory in the Hugging Face layout")->required()->group(group);
  app.add_option("--served-model-name", o.served_model_name, "Name that clients use; default: the directory's")
      ->group(group);
  app.add_option("--tensor-parallel-size", o.tensor_parallel_size, "Ranks that share the model")
      ->capture_default_str()
      ->check(CLI::Range(1, kRanksMax))
      ->group(group);
  app.add_option("--dtype", o.dtype, "Of activations and KV cache; auto is f32 on a processor and bf16 on a GPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->group(group);
  app.add_option("--threads", o.threads, "Threads of one rank; default 0: the cores divided by the ranks, at least 1")
      ->check(CLI::Range(0, 1024))
      ->group(group);
  app.add_option("--block-length", o.block_length, "Positions denoised together; default 0: what the checkpoint says")
      ->check(CLI::Range(0, 256))
      ->group(group);
  app.add_option("--mask-id", o.mask_id,
                 "Of the mask token, where the checkpoint does not state it; default -1: it does")
      ->check(CLI::Range(-1, (1 << 24) - 1))
      ->group(group);
  app.add_flag("--expert-parallel", o.expert_parallel,
               "Give each rank whole experts instead of columns of all; num_experts must be a multiple of the ranks")
      ->group(group);
}

void AddDevice(CLI::App& app, WorkerOptions& o) {
  const char* group = "Device";
  app.add_option("--device", o.device,
                 "Where the ranks compute: cpu, cuda (one H100 or H200 a rank), or auto: cuda where every rank finds a "
                 "usable device")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->group(group);
  app.add_option("--devices", o.devices,
                 "CUDA devices of the ranks, in turn, e.g. 4,5,6,7; ranks may share one; those beyond the ranks step "
                 "in for one "
                 "that fails three times; default: rank r takes device r")
      ->delimiter(',')
      ->check(CLI::Range(0, 1023))
      ->group(group);
  app.add_option("--quantization", o.quantization,
                 "Of the layers' weights and of what they multiply, with a scale a channel and a row; fp8: e4m3, on a "
                 "GPU; int8: 8-bit integers, on a processor with VNNI")
      ->capture_default_str()
      ->check(CLI::IsMember({"none", "fp8", "int8"}))
      ->group(group);
  app.add_option(
         "--deterministic", o.deterministic,
         "on: the bytes of an answer do not depend on what shares its batch; auto: on for a processor, where it "
         "is the only mode, off for a GPU, where it costs speed")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->group(group);
  app.add_option("--device-memory-fraction", o.device_memory_fraction,
                 "Share of a GPU's memory for weights, KV pages and workspaces together")
      ->capture_default_str()
      ->check(CLI::Range(0.05, 1.0))
      ->group(group);
  app.add_option("--kernel-overlap", o.kernel_overlap,
                 "off: start every kernel of a GPU after the end of the one before, to find out what a fault comes of")
      ->capture_default_str()
      ->check(CLI::IsMember({"on", "off"}))
      ->group(group);
  app.add_option("--steps-per-launch", o.steps_per_launch,
                 "Steps that a device may run before the host looks at the group again: hides the host's time and "
                 "delays what arrives meanwhile; 1: steps are recorded without a loop; default 0: 8 on a GPU, 1 on a "
                 "processor")
      ->check(CLI::Range(0, 64))
      ->group(group);
}

void AddCapacity(CLI::App& app, WorkerOptions& o) {
  const char* group = "Capacity";
  app.add_option("--kv-pages", o.kv_pages,
                 "KV pages of a rank; default 0: on a GPU what the weights leave of its share, on a processor "
                 "--sequences-max times the model's length or 4096 positions, whichever is less, but at most 1 GiB")
      ->check(CLI::Range(0, 1 << 28))
      ->group(group);
  app.add_option("--kv-tokens", o.kv_tokens, "The same in positions, rounded up to whole pages")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32))
      ->group(group);
  app.add_option("--page-size", o.page_size,
                 "Positions of a KV page, a multiple of the block; default 0: the first such from 16 on")
      ->check(CLI::Range(0, 4096))
      ->group(group);
  app.add_option("--sequences-max", o.sequences_max, "Sequences that run at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096))
      ->group(group);
  app.add_option("--waiting-max", o.waiting_max, "Sequences that wait; more are refused")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000))
      ->group(group);
  app.add_option("--step-rows-max", o.step_rows_max,
                 "Rows (tokens) of one step; default 0: 512, on a GPU 2048, or the model's length up to 4096 where "
                 "every step computes whole sequences")
      ->check(CLI::Range(0, 1 << 16))
      ->group(group);
  app.add_option("--step-time-target-ms", o.step_time_target_ms,
                 "Prefill beside running sequences is cut so that a step takes about this long; default 0: about twice "
                 "what it takes without prefill, or 50 where that is more")
      ->check(CLI::Range(0, 600000))
      ->group(group);
  app.add_option("--prefix-cache", o.prefix_cache,
                 "on: requests of one tenant that begin alike share the KV pages of that beginning, which are kept "
                 "while there is room; block-causal models only")
      ->capture_default_str()
      ->check(CLI::IsMember({"on", "off"}))
      ->group(group);
}

void AddGroup(CLI::App& app, WorkerOptions& o) {
  const char* group = "Group";
  app.add_option("--group-name", o.group_name, "Name of the group in logs; default: the address of --listen")
      ->group(group);
  app.add_option("--listen", o.listen, "Address of the Worker service, which coordinators dial")
      ->capture_default_str()
      ->group(group);
  app.add_option("--metrics-listen", o.metrics_listen, "Address of /metrics and the health pages")
      ->capture_default_str()
      ->group(group);
  app.add_option("--formation-timeout", o.formation_timeout_seconds, "Seconds that ranks wait for each other at start")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 86400.0))
      ->group(group);
  app.add_option("--peer-timeout", o.peer_timeout_seconds, "Seconds of silence after which a rank counts as lost")
      ->capture_default_str()
      ->check(CLI::Range(1.5, 600.0))
      ->group(group);
  app.add_option("--drain-timeout", o.drain_timeout_seconds, "Seconds that running sequences may take after SIGTERM")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 86400.0))
      ->group(group);
  app.add_option("--collective-hostname", o.collective_hostname, "Name of this host that the other ranks reach");
  app.add_option("--collective-interface", o.collective_interface,
                 "Network interface of the collectives; default: loopback");
  app.add_option("--collective-wait", o.collective_wait,
                 "How ranks wait for each other: spin for a moment, block at once, or auto: spin when every rank of "
                 "this host has a core of its own")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "spin", "block"}));
  app.add_option("--collectives", o.collectives,
                 "Between GPUs. ipc: our kernels in each other's memory, on one host; nccl: sums in rank order; "
                 "nccl-fast: NCCL's own order, not deterministic; auto: ipc where every rank reaches every other one")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "ipc", "nccl", "nccl-fast"}));
  app.add_option("--nccl-library", o.nccl_library, "Path of NCCL; default: libnccl.so.2 where the loader finds it");
  app.add_option("--log-level", o.log_level, "Least level that is logged")
      ->capture_default_str()
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  app.add_option("--failpoints", o.failpoints, "For tests: where to fail; refused by programs without failpoints");
}

void AddRank(CLI::App& app, WorkerOptions& o) {
  const char* group = "One rank (set by the launcher; by hand for a group over several hosts)";
  app.add_option("--rank", o.rank, "Run this rank alone instead of launching all of them")
      ->check(CLI::Range(0, kRanksMax - 1))
      ->group(group);
  app.add_option("--epoch", o.epoch, "Incarnation of the group; equal on its ranks, higher than any before")
      ->capture_default_str()
      ->group(group);
  app.add_option("--restarts", o.restarts, "How often the group was formed before")->group(group);
  app.add_option("--unhealthy-devices", o.unhealthy_devices, "Devices of --devices that failed too often to be used")
      ->delimiter(',')
      ->group(group);
  app.add_option("--planned-device", o.planned_device, "What --device=auto means to the whole group")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->group(group);
  app.add_option("--planned-pages", o.planned_pages, "KV pages of every rank, where --kv-pages leaves it open")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31))
      ->group(group);
  app.add_option("--group-address", o.group_address, "Where rank 0 gathers its group: HOST:PORT or unix-abstract:NAME")
      ->group(group);
}

absl::Status Check(const WorkerOptions& o) {
  for (const auto& [flag, value] :
       {std::pair<const char*, std::string>{"--listen", o.listen}, {"--metrics-listen", o.metrics_listen}}) {
    if (const auto parsed = ParseHostPort(flag, value); !parsed.ok()) return parsed.status();
  }
  if (o.kv_pages > 0 && o.kv_tokens > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-pages (", o.kv_pages, ") and --kv-tokens (", o.kv_tokens, ") exclude each other"));
  }
  if (o.device == "cpu") {
    const std::string collectives = o.collectives == "auto" ? "" : o.collectives;
    for (const auto& [flag, value] :
         {std::pair<const char*, std::string>{"--devices", o.devices.empty() ? "" : absl::StrCat(o.devices[0])},
          {"--collectives", collectives},
          {"--nccl-library", o.nccl_library}}) {
      if (!value.empty())
        return absl::InvalidArgumentError(absl::StrCat(flag, ": '", value, "' needs a GPU, and --device=cpu"));
    }
  }
  if (o.rank >= o.tensor_parallel_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rank: ", o.rank, " is not below --tensor-parallel-size (", o.tensor_parallel_size, ")"));
  }
  if (o.rank < 0 && !o.group_address.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--group-address: '", o.group_address, "' needs --rank"));
  }
  if (o.rank >= 0 && o.tensor_parallel_size > 1 && o.group_address.empty()) {
    return absl::InvalidArgumentError("--rank needs --group-address");
  }
  if (o.deterministic == "on" && o.collectives == "nccl-fast") {
    return absl::InvalidArgumentError(
        "--deterministic=on excludes --collectives=nccl-fast, whose sums have no fixed order");
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<int> ReadOptions(int argc, const char* const* argv, WorkerOptions& options) {
  CLI::App app(
      "Serves one copy of a model to coordinators: launches and supervises the tensor-parallel ranks of a group.\n"
      "Every option is also read from the environment (--foo-bar as QUICKSILVER_FOO_BAR) and from the file of "
      "--config.",
      "quicksilver-worker");
  AddModel(app, options);
  AddDevice(app, options);
  AddCapacity(app, options);
  AddGroup(app, options);
  AddRank(app, options);
  if (const std::optional<int> exit = ParseOptions(app, argc, argv)) return exit;
  if (const absl::Status status = Check(options); !status.ok()) {
    std::cerr << app.get_name() << ": " << status.message() << "; see --help\n";
    return kExitUsage;
  }
  while (options.model.size() > 1 && options.model.back() == '/') options.model.pop_back();
  if (options.served_model_name.empty()) {
    options.served_model_name = options.model.substr(options.model.rfind('/') + 1);
  }
  if (options.group_name.empty()) options.group_name = options.listen;
  return std::nullopt;
}

}  // namespace quicksilver
