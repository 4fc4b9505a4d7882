// One rank of a group over CUDA IPC, as a process: ipc_rank RANK RANKS DIRECTORY TIMEOUT_MS. Prints "exact" when sums
// and gathers have the right bits, "running" when it begins to repeat sums, and a line with the status when the group
// is lost.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/collectives/cuda/cuda_rank_memory.h"
#include "tests/collectives/parts.h"
#include "tests/support/file_rendezvous.h"
#include "worker/collectives/cuda/ipc_communicator.h"
#ifdef QUICKSILVER_CUDA_TWIN
#include "tests/support/cuda_twin/twin_device.h"
#endif

namespace quicksilver {
namespace {

bool Exact(Communicator& group, RankMemory& memory) {
  for (const size_t elements : {size_t{1}, size_t{4097}, size_t{300007}}) {
    const RankArray<float> x(memory, PartOf(group.rank(), elements, 1));
    const RankArray<float> all(memory, std::vector<float>(elements * static_cast<size_t>(group.size())));
    group.AllGather(x.data(), all.data(), elements * sizeof(float));
    group.AllReduceSum(x.row(DType::kF32));
    if (!group.Synchronize().ok() || x.Get() != SumOfParts(group.size(), elements, 1)) return false;
    const std::vector<float> gathered = all.Get();
    for (int rank = 0; rank < group.size(); ++rank) {
      const auto first = gathered.begin() + static_cast<std::ptrdiff_t>(elements) * rank;
      if (std::vector<float>(first, first + static_cast<std::ptrdiff_t>(elements)) != PartOf(rank, elements, 1)) {
        return false;
      }
    }
  }
  return true;
}

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

int Main(char** argv) {
#ifdef QUICKSILVER_CUDA_TWIN
  cuda_twin::TwinDevice().SetSharedMemory(true);
#endif
  IpcOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  options.timeout = absl::Milliseconds(std::atoi(argv[4]));
  FileRendezvous store(argv[3]);
  CudaRankMemory memory;
  auto group = MakeIpcCommunicator(options, memory.stream(), store, absl::Seconds(30));
  if (!group.ok()) {
    Say(group.status().ToString());
    return 1;
  }
  if (!Exact(**group, memory)) return 1;
  Say("exact");
  const RankArray<float> x(memory, std::vector<float>(512));
  Say("running");
  absl::Status status;
  while (status.ok()) {
    (*group)->AllReduceSum(x.row(DType::kF32));
    status = (*group)->Synchronize();
    absl::SleepFor(absl::Milliseconds(1));
  }
  Say(status.ToString());
  _exit(0);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return argc == 5 ? quicksilver::Main(argv) : 2; }
