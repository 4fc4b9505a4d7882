// One rank of a group for tests that kill and stop processes: collective_rank RANK RANKS ADDRESS TIMEOUT_MS KIND.
// Prints "running" when the group works, and a line with the status when it is lost.
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "worker/collectives/gloo_communicator.h"
#include "worker/collectives/gloo_control.h"
#include "worker/service/group_service.h"

namespace quicksilver {
namespace {

absl::Status Work(const std::string& kind, Communicator& group, ControlChannel& control, absl::Duration timeout) {
  if (kind == "control") return control.Broadcast("beat", timeout).status();
  float x[512] = {};
  group.AllReduceSum({x, 1, 512, 512, DType::kF32});
  return group.Synchronize();
}

int Main(char** argv) {
  signal(SIGPIPE, SIG_IGN);
  GlooOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  options.timeout = absl::Milliseconds(std::atoi(argv[4]));
  const std::string address = argv[3], kind = argv[5];
  JoinTable table(options.size, 1);
  MemoryRendezvous memory;
  std::unique_ptr<GroupServer> server;
  std::unique_ptr<RendezvousStore> remote;
  const absl::Duration formation = absl::Seconds(30);
  if (options.rank == 0) {
    server = *GroupServer::Start(address, table, memory, formation);
  } else {
    auto client = GroupClient::Make(address);
    remote = std::move(client);
    while (!remote->Put("hello", "").ok()) absl::SleepFor(absl::Milliseconds(10));
  }
  RendezvousStore& store = options.rank == 0 ? static_cast<RendezvousStore&>(memory) : *remote;
  auto group = MakeGlooCommunicator(options, store, formation);
  auto control = MakeGlooControlChannel(options, store, formation);
  if (!group.ok() || !control.ok()) return 1;
  std::printf("running\n");
  std::fflush(stdout);
  absl::Status status;
  while (status.ok()) {
    status = Work(kind, **group, **control, options.timeout);
    if (options.rank == 0) absl::SleepFor(absl::Milliseconds(20));
  }
  std::printf("%s\n", status.ToString().c_str());
  std::fflush(stdout);
  _exit(0);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return argc == 6 ? quicksilver::Main(argv) : 2; }
