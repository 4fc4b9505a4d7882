// Runs seeds of the fault simulation, or replays one.
//   simulate --seed 17 [--mutant 3]       its story, shrunk, when it fails; all it does with --trace
//   simulate --from 1 --to 10000          which ones fail, and what was reached

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>

#include "absl/time/time.h"
#include "tests/simulation/simulation.h"

namespace quicksilver::simulation {
namespace {

volatile std::sig_atomic_t running_seed = 0;

// A CHECK of the code under test ends the process: say which seed it was.
void OnAbort(int) { std::fprintf(stderr, "aborted in seed %ld\n", static_cast<long>(running_seed)); }

int RunMany(uint64_t from, uint64_t to, Mutant mutant) {
  int failures = 0;
  Counters total;
  uint64_t events = 0, digest = 0;
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t seed = from; seed <= to; ++seed) {
    running_seed = static_cast<std::sig_atomic_t>(seed);
    const RunResult result = RunPlan(MakePlan(seed), mutant, /*tracing=*/false);
    total.Add(result.counters);
    events += result.events;
    digest ^= result.digest + seed;
    if (result.violation) {
      ++failures;
      std::printf("seed %lu breaks `%s`: %s\n", static_cast<unsigned long>(seed), result.violation->rule.c_str(),
                  result.violation->text.c_str());
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double seeds = static_cast<double>(to - from + 1);
  std::printf("%.0f seeds, %d fail, %.2f s, %.2f ms a seed, %.0f events a seed, digest %016lx\n%s\n", seeds, failures,
              seconds, 1000 * seconds / seeds, static_cast<double>(events) / seeds, static_cast<unsigned long>(digest),
              total.ToString().c_str());
  return failures == 0 ? 0 : 1;
}

int RunOne(uint64_t seed, Mutant mutant, bool trace) {
  running_seed = static_cast<std::sig_atomic_t>(seed);
  if (trace) {
    const RunResult result = RunPlan(MakePlan(seed), mutant, /*tracing=*/true);
    for (const TraceLine& line : result.trace) {
      std::printf("%s [%lu] %s\n", absl::FormatDuration(line.at).c_str(), static_cast<unsigned long>(line.request),
                  line.text.c_str());
    }
  }
  const std::optional<std::string> story = StoryOf(seed, mutant);
  std::printf("%s\n", story ? story->c_str() : "passes");
  return story ? 1 : 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Runs seeds of the fault simulation, or replays one.");
  uint64_t seed = 0, from = 1, to = 1000;
  int mutant = 0;
  bool trace = false;
  app.add_option("--seed", seed, "Replay this one.");
  app.add_option("--from", from, "First seed of many.");
  app.add_option("--to", to, "Last seed of many.");
  app.add_option("--mutant", mutant, "A planted bug, by its number in mutant.h.");
  app.add_flag("--trace", trace, "Print all that happens.");
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGABRT, OnAbort);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  return seed > 0 ? RunOne(seed, static_cast<Mutant>(mutant), trace) : RunMany(from, to, static_cast<Mutant>(mutant));
}

}  // namespace
}  // namespace quicksilver::simulation

int main(int argc, char** argv) { return quicksilver::simulation::Main(argc, argv); }
