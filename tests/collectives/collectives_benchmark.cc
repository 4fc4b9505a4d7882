// Measures the collectives between real processes of this host. Prints medians and 99th percentiles.
// usage: collectives_benchmark [--ranks=2] [--wait=auto|spin|block] [--milliseconds=300]
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/support/own_ranks.h"
#include "worker/collectives/gloo_communicator.h"
#include "worker/collectives/gloo_control.h"
#include "worker/service/group_service.h"

namespace quicksilver {
namespace {

struct Settings {
  int ranks = 2;
  int rank = -1;
  std::string wait = "auto";
  std::string address;
  int milliseconds = 300;
};

class Bench {
 public:
  Bench(const Settings& settings, Communicator& group, ControlChannel& control)
      : settings_(settings), group_(group), control_(control) {}

  void Run() {
    for (const int64_t bytes : {256, 8 << 10, 64 << 10, 1 << 20}) {
      std::vector<float> x(static_cast<size_t>(bytes) / sizeof(float));
      const auto cols = static_cast<int64_t>(x.size());
      Measure(absl::StrCat("all-reduce ", bytes, " B"), [&] {
        group_.AllReduceSum({x.data(), 1, cols, cols, DType::kF32});
      });
    }
    char own[64] = {};
    std::vector<char> all(sizeof(own) * static_cast<size_t>(settings_.ranks));
    Measure("all-gather 64 B", [&] { group_.AllGather(own, all.data(), sizeof(own)); });
    // As in a step: the log entry, then the first collective, which the followers cannot begin earlier.
    Measure("broadcast 200 B + all-gather 64 B", [&] {
      if (!control_.Broadcast(std::string(200, 'x'), absl::Seconds(5)).ok()) group_.Abort();
      group_.AllGather(own, all.data(), sizeof(own));
    });
  }

 private:
  void Measure(const std::string& name, const std::function<void()>& work) {
    const int rounds = Rounds(work);
    std::vector<double> microseconds;
    for (int i = 0; i < rounds; ++i) {
      const absl::Duration start = MonotonicNow();
      work();
      microseconds.push_back(absl::ToDoubleMicroseconds(MonotonicNow() - start));
    }
    if (!group_.Synchronize().ok()) std::printf("%s\n", group_.Synchronize().ToString().c_str());
    if (settings_.rank != 0) return;
    std::sort(microseconds.begin(), microseconds.end());
    std::printf("%d ranks, %s, %-34s p50 %8.1f us  p99 %8.1f us  (%d rounds)\n", settings_.ranks,
                settings_.wait.c_str(), name.c_str(), microseconds[microseconds.size() / 2],
                microseconds[microseconds.size() * 99 / 100], rounds);
    std::fflush(stdout);
  }

  // Every rank has to do as many: rank 0 decides after a few.
  int Rounds(const std::function<void()>& work) {
    constexpr int kWarm = 10;
    const absl::Duration start = MonotonicNow();
    for (int i = 0; i < kWarm; ++i) work();
    const double each = absl::ToDoubleMilliseconds(MonotonicNow() - start) / kWarm;
    int rounds = std::clamp(static_cast<int>(settings_.milliseconds / std::max(each, 1e-3)), 20, 20000);
    std::vector<int> all(static_cast<size_t>(settings_.ranks));
    group_.AllGather(&rounds, all.data(), sizeof(rounds));
    return all[0];
  }

  const Settings& settings_;
  Communicator& group_;
  ControlChannel& control_;
};

int RunBenchRank(const Settings& settings) {
  signal(SIGPIPE, SIG_IGN);
  GlooOptions options;
  options.rank = settings.rank;
  options.size = settings.ranks;
  if (settings.wait == "spin") options.wait = CollectiveWait::kSpin;
  if (settings.wait == "block") options.wait = CollectiveWait::kBlock;
  const absl::Duration formation = absl::Seconds(20);
  const Agreement nothing;
  JoinTable table(options.size, 1);
  MemoryRendezvous memory;
  std::unique_ptr<GroupServer> server;
  std::unique_ptr<GroupClient> client;
  if (options.rank == 0) {
    server = *GroupServer::Start(settings.address, table, memory, formation);
    if (!table.Join(0, 1, nothing, formation).ok()) return 1;
  } else {
    client = GroupClient::Make(settings.address);
    if (!client->Join(options.rank, 1, nothing, formation).ok()) return 1;
  }
  RendezvousStore& store = options.rank == 0 ? static_cast<RendezvousStore&>(memory) : *client;
  auto group = MakeGlooCommunicator(options, store, formation);
  auto control = MakeGlooControlChannel(options, store, formation);
  if (!group.ok() || !control.ok()) return 1;
  Bench(settings, **group, **control).Run();
  return (*control)->Barrier(formation).ok() ? 0 : 1;
}

int StartRanks(const Settings& settings) {
  const std::string address = absl::StrCat("--address=unix-abstract:collectives-benchmark-", getpid());
  return RunOwnRanks(settings.ranks, [&](int rank) -> std::vector<std::string> {
    return {absl::StrCat("--ranks=", settings.ranks), absl::StrCat("--rank=", rank), "--wait=" + settings.wait,
            absl::StrCat("--milliseconds=", settings.milliseconds), address};
  });
}

int Main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Measures the collectives between processes of this host.");
  app.add_option("--ranks", settings.ranks)->check(CLI::Range(2, 64));
  app.add_option("--wait", settings.wait)->check(CLI::IsMember({"auto", "spin", "block"}));
  app.add_option("--milliseconds", settings.milliseconds, "Of each line")->check(CLI::Range(10, 60000));
  app.add_option("--rank", settings.rank)->group("");
  app.add_option("--address", settings.address)->group("");
  CLI11_PARSE(app, argc, argv);
  return settings.rank < 0 ? StartRanks(settings) : RunBenchRank(settings);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
