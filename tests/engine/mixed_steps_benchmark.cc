// Times one workload twice: with steps that mix prefill and denoising, as the engine's are, and with steps that do
// either the one or the other, prefill first. Half of all rows are prefill. The plans of the second kind are made here
// from the scheduler's by leaving out what does not belong. usage: mixed_steps_benchmark MODEL_DIR [sequences…]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/cpu_ops.h"
#include "worker/collectives/local_communicator.h"
#include "worker/decoding/sequence.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_runner.h"
#include "worker/model/load_spec.h"
#include "worker/model/transformer.h"

namespace quicksilver {
namespace {

// Means; lengths are uniform within a half of them, so that sequences come and go one by one.
constexpr int32_t kAnswer = 64, kForwardsPerBlock = 2, kPrompt = 192;
constexpr int32_t kRounds = 5, kPageSize = 64, kStepRows = 512, kRequestsPerSequence = 6;
// A device whose steps take as long as reading the weights, up to so many rows: by the floors of docs/benchmarks/gpu.md
// an SDAR-8B on an H100 (5.05 ms for its weights, 20 us of products a row).
constexpr double kFlatRows = 250.0;

/// How steps are put together. `prefill_rows`: most prefill rows of a step.
struct Mode {
  const char* name;
  bool mixed;
  int32_t prefill_rows;
};

constexpr Mode kModes[] = {{"mixed, 64", true, 64},       {"mixed, 128", true, 128},     {"mixed, 256", true, 256},
                           {"separate, 128", false, 128}, {"separate, 256", false, 256}, {"separate, 512", false, 512}};

struct Ran {
  double seconds = 0.0;
  double flat_steps = 0.0;  // Time on the device of kFlatRows, in steps that read the weights.
  int64_t steps = 0, prefill_rows = 0, denoise_rows = 0, tokens = 0;
  std::vector<double> gaps;  // Seconds between the denoising steps of a sequence; sorted.

  double Gap(double part) const { return gaps[static_cast<size_t>(part * static_cast<double>(gaps.size() - 1))]; }
};

/// `plan` without denoising if it prefills anything; what would do both prefills only.
std::vector<PlannedSegment> PrefillAlone(const std::vector<PlannedSegment>& plan) {
  std::vector<PlannedSegment> alone;
  for (const PlannedSegment& planned : plan) {
    const Sequence& sequence = planned.running->sequence;
    if (sequence.prefill_rows() == 0) continue;
    alone.push_back(
        {planned.running, planned.segment.denoise ? sequence.Next(sequence.prefill_rows()) : planned.segment});
  }
  return alone.empty() ? plan : alone;
}

double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Workload {
 public:
  Workload(const ModelSpec& spec, StepRunner& runner, const Mode& mode, int32_t sequences)
      : spec_(spec),
        runner_(runner),
        mode_(mode),
        sequences_(sequences),
        scheduler_({.sequences_max = sequences, .step_rows_max = kStepRows, .pages = 1024, .page_size = kPageSize}) {}

  /// A closed loop: a sequence that ends is followed by the next.
  absl::StatusOr<Ran> Run() {
    const double start = ThreadSeconds();
    while (ended_ < sequences_ * kRequestsPerSequence) {
      while (added_ - ended_ < sequences_ && added_ < sequences_ * kRequestsPerSequence) Add();
      std::vector<PlannedSegment> plan = scheduler_.Plan(absl::Seconds(ThreadSeconds() - start), mode_.prefill_rows);
      if (!mode_.mixed) plan = PrefillAlone(plan);
      RETURN_IF_ERROR(runner_.Launch(plan, 0, 1));
      ASSIGN_OR_RETURN(const bool stepped, runner_.Next());
      CHECK(stepped);
      ++ran_.steps;
      const int64_t rows_before = ran_.prefill_rows + ran_.denoise_rows;
      for (size_t i = 0; i < plan.size(); ++i) Apply(plan[i], i);
      const int64_t rows = ran_.prefill_rows + ran_.denoise_rows - rows_before;
      ran_.flat_steps += std::max(1.0, static_cast<double>(rows) / kFlatRows);
      ASSIGN_OR_RETURN(const bool more, runner_.Next());
      CHECK(!more);
    }
    ran_.seconds = ThreadSeconds() - start;
    std::sort(ran_.gaps.begin(), ran_.gaps.end());
    return ran_;
  }

 private:
  void Add() {
    SequenceSpec wanted;
    wanted.grid = spec_.grid;
    wanted.mask_id = spec_.mask_id;
    wanted.positions_max = static_cast<int32_t>(spec_.positions_max);
    const auto vary = [&](int32_t mean) {
      return std::uniform_int_distribution<int32_t>(mean / 2, mean + mean / 2)(random_);
    };
    for (int32_t i = vary(kPrompt); i > 0; --i) wanted.prompt.push_back((7 * added_ + i) % 256);
    wanted.tokens_max = vary(kAnswer);
    ran_.tokens += wanted.tokens_max;
    wanted.decoding.block_length = spec_.block_length;
    wanted.decoding.steps = kForwardsPerBlock;
    scheduler_.Add(static_cast<uint64_t>(++added_), Sequence(std::move(wanted)), {}, absl::ZeroDuration());
  }

  void Apply(const PlannedSegment& planned, size_t index) {
    Sequence& sequence = planned.running->sequence;
    const int32_t prefill = std::min(sequence.prefill_rows(), planned.segment.rows);
    ran_.prefill_rows += prefill;
    ran_.denoise_rows += planned.segment.rows - prefill;
    if (!planned.segment.denoise) return sequence.ApplyPrefill(planned.segment);
    const double now = ThreadSeconds();
    const auto [last, first] = denoised_at_.emplace(planned.running->id, now);
    if (!first) ran_.gaps.push_back(now - std::exchange(last->second, now));
    if (sequence.ApplyDenoise(planned.segment, runner_.Choices(index, sequence)).end == SequenceEndReason::kNone)
      return;
    CHECK(scheduler_.Remove(planned.running->id));
    ++ended_;
  }

  const ModelSpec& spec_;
  StepRunner& runner_;
  const Mode mode_;
  const int32_t sequences_;
  Scheduler scheduler_;
  std::mt19937 random_{1};
  std::map<uint64_t, double> denoised_at_;  // By sequence.
  int32_t added_ = 0, ended_ = 0;
  Ran ran_;
};

/// A line a mode, of its median run, and the best mixed against the best separate one.
void Print(int32_t sequences, const std::vector<std::vector<Ran>>& runs) {
  double best[2] = {}, best_flat[2] = {};  // Separate, mixed.
  for (size_t m = 0; m < runs.size(); ++m) {
    const Ran& ran = runs[m][kRounds / 2];
    const auto tokens = static_cast<double>(ran.tokens);
    double& rate = best[kModes[m].mixed];
    rate = std::max(rate, tokens / ran.seconds);
    double& flat_rate = best_flat[kModes[m].mixed];
    flat_rate = std::max(flat_rate, tokens / ran.flat_steps);
    std::printf(
        "%2d sequences, %-14s %5ld steps, %2.0f %% of rows prefill, %6.0f answer tokens/s, between steps p50 %6.2f "
        "p99 %6.2f ms; %5.2f tokens a flat step\n",
        sequences, kModes[m].name, static_cast<long>(ran.steps),
        100.0 * static_cast<double>(ran.prefill_rows) / static_cast<double>(ran.prefill_rows + ran.denoise_rows),
        tokens / ran.seconds, 1e3 * ran.Gap(0.5), 1e3 * ran.Gap(0.99), tokens / ran.flat_steps);
  }
  std::printf("%2d sequences: best mixed / best separate: %.2f measured, %.2f were steps flat up to %.0f rows\n",
              sequences, best[1] / best[0], best_flat[1] / best_flat[0], kFlatRows);
}

absl::Status Measure(const std::string& directory, const std::vector<int32_t>& counts) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(*checkpoint));
  const auto ops = MakeCpuOps(DType::kF32, {.threads = 1});
  const auto ranks = MakeLocalCommunicator();
  ASSIGN_OR_RETURN(const auto model, Transformer::Load(spec, *checkpoint, *ops, *ranks, kStepRows, 1024, kPageSize));
  StepRunner runner(*model, *ops, *ranks, {.rows_max = kStepRows, .sequences_max = 64});
  RETURN_IF_ERROR(runner.Allocate());
  std::printf("%s, f32, one thread; prompts of %d, answers of %d tokens, %d forwards a block of %d\n",
              directory.c_str(), kPrompt, kAnswer, kForwardsPerBlock, spec.block_length);
  for (const int32_t sequences : counts) {
    constexpr size_t kCount = std::size(kModes);
    std::vector<std::vector<Ran>> runs(kCount);
    for (int round = 0; round < kRounds; ++round) {  // Turn by turn, so that a noisy machine disturbs all alike.
      for (size_t m = 0; m < kCount; ++m) {
        ASSIGN_OR_RETURN(const Ran ran, Workload(spec, runner, kModes[m], sequences).Run());
        runs[m].push_back(ran);
      }
    }
    for (std::vector<Ran>& ran : runs) {
      std::sort(ran.begin(), ran.end(), [](const Ran& a, const Ran& b) { return a.seconds < b.seconds; });
    }
    Print(sequences, runs);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL_DIR [sequences…]\n", argv[0]);
    return 2;
  }
  std::vector<int32_t> counts;
  for (int i = 2; i < argc; ++i)
    counts.push_back(static_cast<int32_t>(std::clamp(std::strtol(argv[i], nullptr, 10), 1L, 64L)));
  if (counts.empty()) counts = {1, 2, 4, 8};
  const absl::Status status = Measure(argv[1], counts);
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
