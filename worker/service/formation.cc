#include "worker/service/formation.h"

#include <utility>

#include "common/status_macros.h"
#include "worker/collectives/gloo_communicator.h"
#include "worker/collectives/gloo_control.h"
#include "worker/collectives/local_communicator.h"
#include "worker/service/cuda_backend.h"

namespace quicksilver {
namespace {

GlooOptions CollectiveOptions(const WorkerOptions& options) {
  GlooOptions gloo;
  gloo.rank = options.rank;
  gloo.size = options.tensor_parallel_size;
  gloo.hostname = options.collective_hostname;
  gloo.interface_name = options.collective_interface;
  gloo.timeout = absl::Seconds(options.peer_timeout_seconds);
  if (options.collective_wait == "spin") gloo.wait = CollectiveWait::kSpin;
  if (options.collective_wait == "block") gloo.wait = CollectiveWait::kBlock;
  return gloo;
}

absl::StatusOr<Links> Connect(const WorkerOptions& options, Ops* cuda, RendezvousStore& store) {
  const absl::Duration timeout = absl::Seconds(options.formation_timeout_seconds);
  const GlooOptions gloo = CollectiveOptions(options);
  Links links;
  ASSIGN_OR_RETURN(links.control, MakeGlooControlChannel(gloo, store, timeout));
  if (cuda == nullptr) {
    ASSIGN_OR_RETURN(links.ranks, MakeGlooCommunicator(gloo, store, timeout));
  } else {
    ASSIGN_OR_RETURN(links.ranks, MakeCudaCommunicator(options, *cuda, *links.control, store));
  }
  // The store may close when this is over: everybody is connected.
  RETURN_IF_ERROR(links.control->Barrier(timeout));
  return links;
}

// A device that hangs is noticed by its communicator, also where there is nobody to talk to.
absl::StatusOr<Links> Alone(const WorkerOptions& options, Ops* cuda) {
  Links links;
  links.control = MakeLocalControlChannel();
  if (cuda == nullptr) {
    links.ranks = MakeLocalCommunicator();
    return links;
  }
  MemoryRendezvous store;
  ASSIGN_OR_RETURN(links.ranks, MakeCudaCommunicator(options, *cuda, *links.control, store));
  return links;
}

absl::StatusOr<Links> Lead(const WorkerOptions& options, const Agreement& agreement, Ops* cuda) {
  const absl::Duration timeout = absl::Seconds(options.formation_timeout_seconds);
  JoinTable table(options.tensor_parallel_size, options.epoch);
  MemoryRendezvous store;
  ASSIGN_OR_RETURN(const std::unique_ptr<GroupServer> server,
                   GroupServer::Start(options.group_address, table, store, timeout));
  const absl::Status joined = table.Join(options.rank, options.epoch, agreement, timeout);
  absl::StatusOr<Links> links = joined.ok() ? Connect(options, cuda, store) : joined;
  if (!links.ok()) {
    // The others are to learn the reason, those that come a moment later too.
    if (absl::IsFailedPrecondition(links.status())) table.WaitAllAnswered(absl::Seconds(3));
    store.Close();
  }
  return links;
}

absl::StatusOr<Links> Follow(const WorkerOptions& options, const Agreement& agreement, Ops* cuda) {
  const std::unique_ptr<GroupClient> client = GroupClient::Make(options.group_address);
  RETURN_IF_ERROR(
      client->Join(options.rank, options.epoch, agreement, absl::Seconds(options.formation_timeout_seconds)));
  return Connect(options, cuda, *client);
}

}  // namespace

absl::StatusOr<Links> FormGroup(const WorkerOptions& options, const Agreement& agreement, Ops* cuda) {
  if (options.tensor_parallel_size == 1) return Alone(options, cuda);
  return options.rank == 0 ? Lead(options, agreement, cuda) : Follow(options, agreement, cuda);
}

}  // namespace quicksilver
