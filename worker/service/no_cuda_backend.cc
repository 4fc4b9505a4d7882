#include "worker/service/cuda_backend.h"

namespace quicksilver {
namespace {

absl::Status NotBuilt() {
  return absl::FailedPreconditionError("this build has no CUDA backend: build with nvcc at hand (--preset cuda)");
}

}  // namespace

bool HasCudaBackend() { return false; }
absl::StatusOr<CudaDeviceFacts> InspectCudaDevice(int32_t /*ordinal*/) { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<Ops>> OpenCudaRank(const CudaRankOptions& /*options*/) { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<Communicator>> MakeCudaCommunicator(const WorkerOptions& /*options*/, Ops& /*ops*/,
                                                                   ControlChannel& /*control*/,
                                                                   RendezvousStore& /*store*/) {
  return NotBuilt();
}

}  // namespace quicksilver
