#include "worker/collectives/cuda/device_communicator.h"

#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/cuda_error.h"
#include "worker/collectives/cuda/ipc_communicator.h"
#ifdef QUICKSILVER_NCCL
#include "worker/collectives/cuda/nccl_communicator.h"
#endif

namespace quicksilver {
namespace {

// Two ranks with equal names can open each other's memory handles: they run under one kernel and see each other, as the
// ranks of one container do. Empty: unknown.
std::string HostName() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  for (const char* space : {"ipc", "pid"}) {
    std::error_code error;
    const std::filesystem::path path = std::filesystem::read_symlink(absl::StrCat("/proc/self/ns/", space), error);
    if (error) return "";
    absl::StrAppend(&id, ",", path.string());
  }
  return id;
}

absl::StatusOr<std::string> BusId(int device) {
  char id[32] = {};
  RETURN_IF_ERROR(CudaStatus(cudaDeviceGetPCIBusId(id, sizeof(id), device), "cudaDeviceGetPCIBusId"));
  return std::string(id);
}

// What of the device at `bus_id` this rank cannot do; empty: it reaches its memory.
absl::StatusOr<std::string> WhyUnreachable(int device, const std::string& own_bus_id, const std::string& bus_id) {
  if (bus_id == own_bus_id) return std::string();
  int devices = 0;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&devices), "cudaGetDeviceCount"));
  for (int other = 0; other < devices; ++other) {
    ASSIGN_OR_RETURN(const std::string other_id, BusId(other));
    if (other_id != bus_id) continue;
    int possible = 0;
    RETURN_IF_ERROR(CudaStatus(cudaDeviceCanAccessPeer(&possible, device, other), "cudaDeviceCanAccessPeer"));
    return possible != 0 ? std::string() : absl::StrCat("no peer access from ", own_bus_id, " to ", bus_id);
  }
  return absl::StrCat("device ", bus_id, " is not visible to it");
}

// Every rank writes its line; the lines of all, by rank.
absl::StatusOr<std::vector<std::string>> Share(const DeviceCommunicatorOptions& options, RendezvousStore& store,
                                               const std::string& what, const std::string& line) {
  std::vector<std::string> keys;
  for (int rank = 0; rank < options.size; ++rank) keys.push_back(absl::StrCat("device/", what, "/", rank));
  RETURN_IF_ERROR(store.Put(keys[options.rank], line));
  return store.Get(keys, options.formation);
}

// The same text on all ranks: why device memory cannot be shared, or nothing.
absl::StatusOr<std::string> WhyNoIpc(const DeviceCommunicatorOptions& options, RendezvousStore& store) {
  if (options.size > kExchangeRanksMax) return absl::StrCat("more than ", kExchangeRanksMax, " ranks");
  int device = 0;
  RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "cudaGetDevice"));
  ASSIGN_OR_RETURN(const std::string bus_id, BusId(device));
  ASSIGN_OR_RETURN(const std::vector<std::string> places,
                   Share(options, store, "place", absl::StrCat(HostName(), " ", bus_id)));
  std::string obstacle;
  for (int peer = 0; peer < options.size && obstacle.empty(); ++peer) {
    const std::vector<std::string> place = absl::StrSplit(places[peer], ' ');
    if (place.size() != 2 || place[0].empty() || place[0] != HostName()) {
      obstacle = "on another host, or in another container";
    } else {
      ASSIGN_OR_RETURN(obstacle, WhyUnreachable(device, bus_id, place[1]));
    }
    if (!obstacle.empty()) obstacle = absl::StrCat("rank ", options.rank, " to rank ", peer, ": ", obstacle);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> obstacles, Share(options, store, "obstacle", obstacle));
  for (const std::string& other : obstacles) {
    if (!other.empty()) return other;
  }
  return std::string();
}

#ifdef QUICKSILVER_NCCL
absl::StatusOr<std::unique_ptr<Communicator>> MakeNccl(const DeviceCommunicatorOptions& options, cudaStream_t stream,
                                                       ControlChannel& control) {
  NcclOptions nccl;
  nccl.rank = options.rank;
  nccl.size = options.size;
  nccl.library = options.nccl_library;
  nccl.rank_order = options.kind != CollectivesKind::kNcclFast;
  nccl.init_timeout = options.formation;
  nccl.step_timeout = options.timeout;  // A launch is one step: repeats() is false.
  return MakeNcclCommunicator(nccl, stream, control);
}
#else
absl::StatusOr<std::unique_ptr<Communicator>> MakeNccl(const DeviceCommunicatorOptions&, cudaStream_t,
                                                       ControlChannel&) {
  return absl::FailedPreconditionError("collectives: this build has no NCCL: its header was missing");
}
#endif

}  // namespace

absl::StatusOr<CollectivesKind> ParseCollectivesKind(const std::string& text) {
  if (text == "auto") return CollectivesKind::kAuto;
  if (text == "ipc") return CollectivesKind::kIpc;
  if (text == "nccl") return CollectivesKind::kNccl;
  if (text == "nccl-fast") return CollectivesKind::kNcclFast;
  return absl::InvalidArgumentError(absl::StrCat("collectives: '", text, "' is none of auto, ipc, nccl, nccl-fast"));
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeDeviceCommunicator(const DeviceCommunicatorOptions& options,
                                                                     cudaStream_t stream, ControlChannel& control,
                                                                     RendezvousStore& store) {
  if (options.kind == CollectivesKind::kNccl || options.kind == CollectivesKind::kNcclFast) {
    return MakeNccl(options, stream, control);
  }
  if (options.size > 1) {
    ASSIGN_OR_RETURN(const std::string obstacle, WhyNoIpc(options, store));
    if (!obstacle.empty() && options.kind == CollectivesKind::kIpc) {
      return absl::FailedPreconditionError(absl::StrCat("--collectives=ipc is not possible: ", obstacle));
    }
    if (!obstacle.empty()) {
      LogInfo("ranks do not share device memory: NCCL", {{"rank", options.rank}, {"reason", obstacle}});
      return MakeNccl(options, stream, control);
    }
  }
  IpcOptions ipc;
  ipc.rank = options.rank;
  ipc.size = options.size;
  ipc.timeout = options.timeout;
  ipc.step_timeout = 4 * options.timeout;  // Whoever waits for a peer gives up before; this is for a device that hangs.
  return MakeIpcCommunicator(ipc, stream, store, options.formation);
}

}  // namespace quicksilver
