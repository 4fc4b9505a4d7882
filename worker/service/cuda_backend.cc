#include "worker/service/cuda_backend.h"

#include "absl/time/time.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/overlap.h"
#include "worker/collectives/cuda/device_communicator.h"

namespace quicksilver {

bool HasCudaBackend() { return true; }

absl::StatusOr<CudaDeviceFacts> InspectCudaDevice(int32_t ordinal) {
  ASSIGN_OR_RETURN(const CudaDevice device, DescribeCudaDevice(ordinal));
  return CudaDeviceFacts{device.name, device.memory_bytes};
}

absl::StatusOr<std::unique_ptr<Ops>> OpenCudaRank(const CudaRankOptions& options) {
  kernel_overlap = options.kernel_overlap;
  return MakeCudaOps({.activation = options.activations,
                      .device = options.device,
                      .deterministic = options.deterministic,
                      .fp8_layers = options.fp8_layers});
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeCudaCommunicator(const WorkerOptions& options, Ops& ops,
                                                                   ControlChannel& control, RendezvousStore& store) {
  DeviceCommunicatorOptions device;
  device.rank = options.rank;
  device.size = options.tensor_parallel_size;
  ASSIGN_OR_RETURN(device.kind, ParseCollectivesKind(options.collectives));
  device.nccl_library = options.nccl_library;
  device.timeout = absl::Seconds(options.peer_timeout_seconds);
  device.formation = absl::Seconds(options.formation_timeout_seconds);
  return MakeDeviceCommunicator(device, CudaStreamOf(ops), control, store);
}

}  // namespace quicksilver
