#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/options.h"

namespace quicksilver {

/// What the ranks of a group find on this host.
struct Machine {
  bool cuda = false;           ///< The ranks compute on NVIDIA devices, else on the processor.
  int cores = 1;               ///< That this process may use.
  bool int8_products = false;  ///< The processor adds up products of bytes exactly.
  std::string device_name;     ///< E.g. "NVIDIA H100 80GB HBM3"; "cpu".
  int64_t device_bytes = 0;    ///< Memory of a rank: of its device, divided by the ranks on it. 0: not bounded here.
};

/// The CUDA device of a rank: those of --devices that are healthy, in turn.
int32_t DeviceOfRank(const WorkerOptions& options, int rank);

/// Follows --device and looks whether the devices of all ranks that run here are there and usable, without opening
/// them. FailedPrecondition, saying what was found and what is needed.
absl::StatusOr<Machine> InspectMachine(const WorkerOptions& options);

/// How a rank computes. Layers in fp8 are for GPUs, in 8-bit integers for processors.
struct Precision {
  DType activations = DType::kF32;
  bool fp8_layers = false;
  bool int8_layers = false;
  bool deterministic = true;
};

/// The operations of rank max(options.rank, 0). `threads`: on a processor. FailedPrecondition as above;
/// ResourceExhausted: the device has no memory for its workspaces.
absl::StatusOr<std::unique_ptr<Ops>> OpenRankDevice(const WorkerOptions& options, const Machine& machine,
                                                    const Precision& precision, int threads);

}  // namespace quicksilver
