#include "worker/service/machine.h"

#include <sched.h>

#include <algorithm>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/cpu/cpu_ops.h"
#include "worker/service/cuda_backend.h"

namespace quicksilver {
namespace {

int CoresOfProcess() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// The ranks that this process is responsible for: all of them as the launcher, else its own.
absl::Status InspectCuda(const WorkerOptions& options, Machine& machine) {
  const bool launcher = options.rank < 0;
  const int first = launcher ? 0 : options.rank, end = launcher ? options.tensor_parallel_size : options.rank + 1;
  for (int rank = first; rank < end; ++rank) {
    const int32_t ordinal = DeviceOfRank(options, rank);
    const absl::StatusOr<CudaDeviceFacts> device = InspectCudaDevice(ordinal);
    if (!device.ok()) {
      return absl::Status(device.status().code(),
                          absl::StrCat("rank ", rank, " of ", options.tensor_parallel_size, " on CUDA device ", ordinal,
                                       ": ", std::string(device.status().message()),
                                       "; choose with --devices, --tensor-parallel-size or --device=cpu"));
    }
    // The ranks of other hosts have devices of the same numbers: only the launcher knows who shares one.
    int sharers = launcher ? 0 : 1;
    for (int other = 0; launcher && other < options.tensor_parallel_size; ++other) {
      sharers += DeviceOfRank(options, other) == ordinal ? 1 : 0;
    }
    if (sharers > 1 && options.collectives.rfind("nccl", 0) == 0) {
      return absl::OutOfRangeError(absl::StrCat("--collectives: ", options.collectives,
                                                " takes one rank a device, and ", sharers, " are on CUDA device ",
                                                ordinal, " (--devices)"));
    }
    const int64_t share = device->memory_bytes / sharers;
    machine.device_name = device->name;
    machine.device_bytes = rank == first ? share : std::min(machine.device_bytes, share);
  }
  machine.cuda = true;
  return absl::OkStatus();
}

}  // namespace

int32_t DeviceOfRank(const WorkerOptions& options, int rank) {
  std::vector<int32_t> devices = options.devices;
  std::erase_if(devices, [&](int32_t device) { return absl::c_linear_search(options.unhealthy_devices, device); });
  return devices.empty() ? rank : devices[static_cast<size_t>(rank) % devices.size()];
}

absl::StatusOr<Machine> InspectMachine(const WorkerOptions& options) {
  Machine machine;
  machine.cores = CoresOfProcess();
  machine.device_name = "cpu";
  machine.int8_products = HasInt8Products();
  const std::string& device = options.planned_device.empty() ? options.device : options.planned_device;
  if (device == "cpu") return machine;
  if (device == "auto" && !HasCudaBackend()) return machine;
  const absl::Status cuda = InspectCuda(options, machine);
  if (cuda.ok() || device == "cuda" || absl::IsOutOfRange(cuda)) {
    RETURN_IF_ERROR(cuda);
    return machine;
  }
  if (options.rank <= 0) LogInfo("computing on the processor", {{"reason", std::string(cuda.message())}});
  machine.device_name = "cpu";
  machine.device_bytes = 0;
  return machine;
}

absl::StatusOr<std::unique_ptr<Ops>> OpenRankDevice(const WorkerOptions& options, const Machine& machine,
                                                    const Precision& precision, int threads) {
  if (!machine.cuda) {
    CpuOpsOptions cpu;
    cpu.threads = threads;
    cpu.int8_layers = precision.int8_layers;
    return MakeCpuOps(precision.activations, cpu);
  }
  return OpenCudaRank({.device = DeviceOfRank(options, std::max(options.rank, 0)),
                       .activations = precision.activations,
                       .fp8_layers = precision.fp8_layers,
                       .deterministic = precision.deterministic,
                       .kernel_overlap = options.kernel_overlap == "on"});
}

}  // namespace quicksilver
