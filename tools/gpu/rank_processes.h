#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "tools/gpu/step_cost.h"
#include "worker/collectives/communicator.h"

namespace quicksilver {

/// Runs the case `name` as `ranks` processes of this program on one device, and returns the row that the first prints.
/// Internal: a process failed; its own message is on standard error.
absl::StatusOr<nlohmann::ordered_json> RunRanks(const std::string& name, int ranks, bool toy, int device,
                                                const Ceilings& ceilings);

/// In such a process: the group's collectives over CUDA IPC. `rendezvous`: a directory.
absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(int rank, int ranks, const std::string& rendezvous,
                                                        cudaStream_t stream);

}  // namespace quicksilver
