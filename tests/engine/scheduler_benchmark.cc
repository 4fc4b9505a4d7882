// Prints how long Scheduler::Plan() takes at 256 running sequences: median and 99th percentile over the steps of a few
// loads, in microseconds of wall time. usage: scheduler_benchmark [STEPS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "worker/engine/scheduler.h"

namespace quicksilver {
namespace {

constexpr int32_t kBlockLength = 32;
constexpr int32_t kPageSize = 64;
constexpr int32_t kRunning = 256;
constexpr int kWarmUpSteps = 200;

struct Load {
  const char* name;
  int32_t rows_max;
  int32_t pages;
  int32_t tenants;
  int32_t waiting;  // Beside those that run.
  int32_t prompt_tokens;
  int32_t shared_tokens;  // Of the prompt, equal in all.
  int32_t tokens_max;
};

class Bench {
 public:
  explicit Bench(const Load& load)
      : load_(load),
        scheduler_({.sequences_max = kRunning,
                    .step_rows_max = load.rows_max,
                    .pages = load.pages,
                    .page_size = kPageSize,
                    .share_prefixes = true}) {}

  void Run(int steps) {
    std::vector<double> micros;
    double running = 0, planned = 0;
    for (int step = 0; step < steps + kWarmUpSteps; ++step) {
      while (scheduler_.running() + scheduler_.waiting() < kRunning + load_.waiting) Add();
      const auto start = std::chrono::steady_clock::now();
      const std::vector<PlannedSegment>& plan = scheduler_.Plan(now_, load_.rows_max);
      const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
      if (step >= kWarmUpSteps) {
        micros.push_back(took.count());
        running += scheduler_.running();
        planned += static_cast<double>(plan.size());
      }
      Apply(plan);
      now_ += absl::Milliseconds(10);
    }
    std::sort(micros.begin(), micros.end());
    const SchedulerStatistics statistics = scheduler_.statistics();
    std::printf("%-44s median %6.1f us, p99 %7.1f us; running %.0f, planned %.0f, preemptions %llu, evictions %llu\n",
                load_.name, micros[micros.size() / 2], micros[micros.size() * 99 / 100], running / steps,
                planned / steps, static_cast<unsigned long long>(statistics.preemptions),
                static_cast<unsigned long long>(statistics.evictions));
  }

 private:
  void Add() {
    const uint64_t id = ++last_id_;
    SequenceSpec spec;
    spec.mask_id = 99;
    spec.positions_max = 1 << 20;
    // The first ones are of different lengths, so that they do not all end at the same time.
    spec.tokens_max =
        id <= kRunning ? static_cast<int32_t>(kBlockLength + id * 37 % load_.tokens_max) : load_.tokens_max;
    for (int32_t i = 0; i < load_.prompt_tokens; ++i) {
      spec.prompt.push_back(i < load_.shared_tokens ? i % 90 : static_cast<TokenId>((id * 31 + i * 7) % 90));
    }
    spec.decoding.block_length = kBlockLength;
    spec.decoding.steps = kBlockLength / 4;
    spec.decoding.policy = Policy::kStatic;
    SchedulingTerms terms;
    terms.priority = static_cast<int32_t>(id % 3);
    terms.tenant = std::to_string(id % static_cast<uint64_t>(load_.tenants));
    terms.deadline = now_ + absl::Seconds(60) + absl::Milliseconds(id % 1000);
    terms.cache_salt = "salt";
    scheduler_.Add(id, Sequence(std::move(spec)), std::move(terms), now_);
  }

  void Apply(const std::vector<PlannedSegment>& plan) {
    for (const auto& [running, segment] : std::vector<PlannedSegment>(plan)) {
      Sequence& sequence = running->sequence;
      if (!segment.denoise) {
        sequence.ApplyPrefill(segment);
        continue;
      }
      choices_.assign(sequence.asked().size(),
                      RowChoice{.token = 7, .confidence = 0.5f, .log_probability = -1.0f, .finite = true});
      if (sequence.ApplyDenoise(segment, choices_).end != SequenceEndReason::kNone) scheduler_.Remove(running->id);
    }
  }

  const Load load_;
  Scheduler scheduler_;
  absl::Duration now_ = absl::Seconds(1);
  uint64_t last_id_ = 0;
  std::vector<RowChoice> choices_;
};

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) {
  using quicksilver::kRunning;
  const int steps = argc > 1 ? std::max(1, std::atoi(argv[1])) : 3000;
  const quicksilver::Load loads[] = {
      {"all blocks fit, 1 tenant", 32768, 8000, 1, 0, 100, 0, 4000},
      {"all blocks fit, 16 tenants", 32768, 8000, 16, 0, 100, 0, 4000},
      {"rows for an eighth, 1 tenant", 1024, 8000, 1, 0, 100, 0, 4000},
      {"rows for an eighth, 64 tenants, 256 waiting", 1024, 8000, 64, kRunning, 500, 256, 1000},
      {"all fit, short answers, shared prefixes", 32768, 8000, 16, 64, 1000, 768, 256},
      {"pages for a third, 16 tenants", 32768, 3000, 16, 64, 200, 64, 2000},
  };
  for (const quicksilver::Load& load : loads) quicksilver::Bench(load).Run(steps);
}
