// What a placement and an admission cost with many groups. Usage: placement_benchmark [GROUPS], 1,000 by default.

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "coordinator/core/dispatcher.h"
#include "coordinator/core/prefix_chain.h"

namespace quicksilver {
namespace {

constexpr int kRounds = 5;
constexpr int kPlacements = 100000;
constexpr uint32_t kSequences = 64;

// Of this thread on a processor: other work on the machine shows less.
double ThreadMicroseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

Connection Group(uint32_t g) { return {GroupId{g}, 1}; }

GroupFacts Facts() {
  return {.epoch = 1, .model = "m", .fingerprint = "f", .sequences_max = kSequences, .positions_max = 1 << 20};
}

GroupBeat SomeBeat(std::mt19937_64& random) {
  return {.epoch = 1,
          .ready = true,
          .sequences_running = static_cast<uint32_t>(random() % (kSequences / 2)),
          .positions_free = (1 << 19) + random() % (1 << 19),
          .step_time = absl::Milliseconds(20 + random() % 10)};
}

// Chains of prompts that begin with one of 10,000 system prompts.
std::vector<std::vector<uint64_t>> Chains(size_t length, std::mt19937_64& random) {
  std::vector<std::vector<uint64_t>> chains(10000);
  for (auto& chain : chains) {
    for (size_t i = 0; i < length; ++i) chain.push_back(random());
  }
  return chains;
}

void Print(const std::string& what, std::vector<double>& microseconds) {
  std::sort(microseconds.begin(), microseconds.end());
  std::printf("%-75s %6.2f us  (median of %zu; best %.2f, worst %.2f)\n", what.c_str(),
              microseconds[microseconds.size() / 2], microseconds.size(), microseconds.front(), microseconds.back());
}

void MeasurePlacement(uint32_t groups, size_t chain_length) {
  std::mt19937_64 random(1);
  Placement placement;
  for (uint32_t g = 0; g < groups; ++g) {
    placement.OnBeat(placement.Join(Group(g), Facts(), absl::ZeroDuration()), SomeBeat(random), absl::ZeroDuration());
  }
  const auto chains = Chains(chain_length, random);
  GroupPool& pool = placement.FindModel("m")->all;
  std::vector<double> results;
  uint64_t id = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double start = ThreadMicroseconds();
    for (int i = 0; i < kPlacements; ++i) {
      const Placing placing{.key = ++id, .positions = 1500, .prefix = chains[random() % chains.size()]};
      GroupState* group = placement.Choose(pool, pool.open, placing);
      placement.AddSequence(*group, SequenceId{id}, placing, 1000, absl::ZeroDuration());
      placement.RemoveSequence(*group, SequenceId{id}, 1500, 1000, true, absl::ZeroDuration());
    }
    results.push_back((ThreadMicroseconds() - start) / kPlacements);
  }
  Print((std::to_string(groups) + " groups, chain of " + std::to_string(chain_length) + ": placement").c_str(),
        results);
}

// A request from Submit() to its end, with groups half full, and with all of them full and a queue of 1,000.
void MeasureRequests(uint32_t groups, bool full) {
  std::mt19937_64 random(1);
  Dispatcher dispatcher({.queue_requests_max = 1 << 20, .queue_tokens_max = uint64_t{1} << 40});
  for (uint32_t g = 0; g < groups; ++g) {
    dispatcher.OnGroupJoined(Group(g), Facts(), absl::ZeroDuration());
    dispatcher.OnHeartbeat(Group(g), SomeBeat(random), absl::ZeroDuration());
  }
  const auto chains = Chains(8, random);
  std::vector<SequenceId> live;
  uint64_t id = 0;
  absl::Duration now;
  const auto submit = [&] {
    Admission admission{.id = RequestId{++id},
                        .model = "m",
                        .tenant = "tenant " + std::to_string(random() % 100),
                        .prompt_tokens = 1000,
                        .max_tokens = 500,
                        .accepted = now,
                        .prefix = chains[random() % chains.size()]};
    return dispatcher.Submit(admission, now);
  };
  const auto note = [&](const Actions& actions) {
    for (const Action& action : actions) {
      if (const auto* one = std::get_if<SubmitSequence>(&action)) live.push_back(one->sequence);
    }
  };
  const uint64_t fill = full ? uint64_t{groups} * kSequences + 1000 : uint64_t{groups} * kSequences / 2;
  for (uint64_t i = 0; i < fill; ++i) note(submit());
  std::vector<double> results;
  for (int round = 0; round < kRounds; ++round) {
    const double start = ThreadMicroseconds();
    for (int i = 0; i < kPlacements; ++i) {
      now += absl::Microseconds(10);
      note(submit());
      std::swap(live[random() % live.size()], live.back());
      const SequenceId over = live.back();
      live.pop_back();
      note(dispatcher.OnSequenceEnded(over, 100, now));
    }
    results.push_back((ThreadMicroseconds() - start) / kPlacements);
  }
  Print(std::to_string(groups) + (full ? " groups, full, 1,000 waiting" : " groups, half full") +
            ": a request, from its admission to its end",
        results);
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) {
  const auto groups = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 1000);
  for (const size_t length : {size_t{0}, size_t{8}, quicksilver::kPrefixChainMax}) {
    quicksilver::MeasurePlacement(groups, length);
  }
  quicksilver::MeasureRequests(groups, /*full=*/false);
  quicksilver::MeasureRequests(groups, /*full=*/true);
  return 0;
}
