// Measures the collectives over CUDA IPC between processes: on one device, where without MPS they take turns, or on one
// device a rank. Each line is a graph of many operations, as in a step. Prints medians over the launches.
// usage: ipc_benchmark [--ranks=2] [--devices=1] [--launches=20] [--operations=100]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "tests/collectives/cuda/cuda_rank_memory.h"
#include "tests/collectives/cuda/device_or_twin.h"
#include "tests/support/file_rendezvous.h"
#include "tests/support/own_ranks.h"
#include "tests/support/temp_directory.h"
#include "worker/collectives/cuda/ipc_communicator.h"

namespace quicksilver {
namespace {

struct Settings {
  int ranks = 2;
  int devices = 1;
  int launches = 20;
  int operations = 100;
  int rank = -1;
  std::string directory;
};

class Bench {
 public:
  Bench(const Settings& settings, Communicator& group, CudaRankMemory& memory)
      : settings_(settings), group_(group), memory_(memory) {}

  absl::Status AllReduce(const char* shots, int64_t bytes) {
    const RankArray<uint16_t> x(memory_, std::vector<uint16_t>(static_cast<size_t>(bytes) / 2));
    return Measure(absl::StrCat("all-reduce bf16 ", bytes, " B ", shots),
                   [&] { group_.AllReduceSum(x.row(DType::kBf16)); });
  }

  absl::Status AllGather(int64_t bytes) {
    const size_t each = static_cast<size_t>(bytes);
    const RankArray<char> in(memory_, std::vector<char>(each));
    const RankArray<char> out(memory_, std::vector<char>(each * static_cast<size_t>(settings_.ranks)));
    return Measure(absl::StrCat("all-gather ", bytes, " B"), [&] { group_.AllGather(in.data(), out.data(), each); });
  }

 private:
  template <typename Operation>
  absl::Status Measure(const std::string& name, const Operation& operation) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    CHECK(cudaStreamBeginCapture(memory_.stream(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    for (int i = 0; i < settings_.operations; ++i) operation();
    CHECK(cudaStreamEndCapture(memory_.stream(), &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
    std::vector<double> microseconds;
    absl::Status status;
    for (int launch = 0; launch <= settings_.launches && status.ok(); ++launch) {
      const absl::Duration start = MonotonicNow();
      CHECK(cudaGraphLaunch(exec, memory_.stream()) == cudaSuccess);
      status = group_.Synchronize();
      if (launch > 0) microseconds.push_back(absl::ToDoubleMicroseconds(MonotonicNow() - start) / settings_.operations);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    if (settings_.rank == 0 && status.ok()) {
      std::sort(microseconds.begin(), microseconds.end());
      std::printf("%d ranks on %d devices, %-40s %10.2f us each\n", settings_.ranks, settings_.devices, name.c_str(),
                  microseconds[microseconds.size() / 2]);
      std::fflush(stdout);
    }
    return status;
  }

  const Settings& settings_;
  Communicator& group_;
  CudaRankMemory& memory_;
};

absl::Status RunAll(const Settings& settings, bool two_shots, CudaRankMemory& memory) {
  FileRendezvous store(settings.directory + (two_shots ? "/two" : "/one"));
  IpcOptions options;
  options.rank = settings.rank;
  options.size = settings.ranks;
  options.two_shot_bytes_min = two_shots ? 0 : SIZE_MAX;
  const auto group = MakeIpcCommunicator(options, memory.stream(), store, absl::Seconds(60));
  if (!group.ok()) return group.status();
  Bench bench(settings, **group, memory);
  absl::Status status;
  for (const int64_t bytes : {8 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20}) {
    if (status.ok()) status = bench.AllReduce(two_shots ? "in two shots" : "in one shot", bytes);
  }
  if (status.ok() && !two_shots) status = bench.AllGather(1024);
  // A region may go when nobody can write to it any more.
  if (status.ok()) status = store.Put(absl::StrCat("done", settings.rank), "");
  std::vector<std::string> all;
  for (int rank = 0; rank < settings.ranks; ++rank) all.push_back(absl::StrCat("done", rank));
  if (status.ok()) status = store.Get(all, absl::Seconds(60)).status();
  return status;
}

int RunBenchRank(const Settings& settings) {
  if (const std::string missing = PrepareDevices(settings.devices); !missing.empty()) {
    std::fprintf(stderr, "ipc_benchmark: %s\n", missing.c_str());
    return 1;
  }
  CHECK(cudaSetDevice(settings.rank % settings.devices) == cudaSuccess);
  CudaRankMemory memory;
  absl::Status status = RunAll(settings, /*two_shots=*/false, memory);
  if (status.ok()) status = RunAll(settings, /*two_shots=*/true, memory);
  if (status.ok()) return 0;
  std::fprintf(stderr, "ipc_benchmark: rank %d: %s\n", settings.rank, status.ToString().c_str());
  return 1;
}

int StartRanks(const Settings& settings) {
  TempDirectory directory;
  for (const char* name : {"one", "two"}) std::filesystem::create_directory(directory.PathOf(name));
  return RunOwnRanks(settings.ranks, [&](int rank) -> std::vector<std::string> {
    return {absl::StrCat("--ranks=", settings.ranks),
            absl::StrCat("--devices=", settings.devices),
            absl::StrCat("--launches=", settings.launches),
            absl::StrCat("--operations=", settings.operations),
            absl::StrCat("--rank=", rank),
            "--directory=" + directory.path()};
  });
}

int Main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Measures the collectives over CUDA IPC between processes.");
  app.add_option("--ranks", settings.ranks)->check(CLI::Range(2, 8));
  app.add_option("--devices", settings.devices, "Rank r takes device r modulo this")->check(CLI::Range(1, 8));
  app.add_option("--launches", settings.launches, "Of each line")->check(CLI::Range(1, 10000));
  app.add_option("--operations", settings.operations, "Of each graph")->check(CLI::Range(1, 1000));
  app.add_option("--rank", settings.rank)->group("");
  app.add_option("--directory", settings.directory)->group("");
  CLI11_PARSE(app, argc, argv);
  return settings.rank < 0 ? StartRanks(settings) : RunBenchRank(settings);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
