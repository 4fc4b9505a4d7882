// Measures where a step of the engine spends its time on a processor, by precision and by rows, and how far each phase
// is from what the machine allows: the larger of bytes / bandwidth and arithmetic / peak, both measured side by side
// with the steps.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "kernels/cpu/cpu_ops.h"
#include "tools/machine_ceilings.h"
#include "tools/timed_host_ops.h"
#include "worker/collectives/local_communicator.h"
#include "worker/engine/step_runner.h"
#include "worker/model/load_spec.h"
#include "worker/model/transformer.h"

namespace quicksilver {
namespace {

constexpr int32_t kPageSize = 64;
constexpr int32_t kBlockMax = 32;  ///< More rows are several sequences.
constexpr int kStepsMin = 5;
constexpr const char* kPhases[] = {"embedding", "norms", "qkv", "attention", "out", "mlp", "head", "policy", "engine"};

struct Options {
  std::string model;
  std::vector<std::string> precisions = {"f32", "bf16", "int8"};
  std::vector<int32_t> rows = {1, 4, 32, 128};
  int32_t threads = 1;
  int32_t context = 64;
  double seconds = 6.0;
};

struct Precision {
  DType activations;
  bool int8_layers;
  GemmArithmetic layers() const { return int8_layers ? GemmArithmetic::kInt8 : head(); }
  GemmArithmetic head() const { return activations == DType::kF32 ? GemmArithmetic::kF32 : GemmArithmetic::kBf16; }
};

const std::map<std::string, Precision> kPrecisions = {{"f32", {DType::kF32, false}},
                                                      {"bf16", {DType::kBf16, false}},
                                                      {"int8", {DType::kF32, true}},
                                                      {"int8-bf16", {DType::kBf16, true}}};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// What one phase of one step took, and what it had to move and to compute.
struct Phase {
  double seconds = 0.0;
  double bytes = 0.0;
  std::map<GemmArithmetic, double> flops;
};
using Phases = std::map<std::string, Phase>;

double FloorOf(const Phase& phase, const MachineCeilings& machine) {
  double arithmetic = 0.0;
  for (const auto& [kind, flops] : phase.flops) arithmetic += flops / machine.flops_per_second.at(kind);
  return std::max(phase.bytes / machine.bytes_per_second, arithmetic);
}

/// The median of each phase; bytes and flops are the same in every step.
Phases MedianOf(const std::vector<Phases>& steps) {
  Phases median = steps.front();
  for (auto& [name, phase] : median) {
    std::vector<double> seconds;
    for (const Phases& step : steps) seconds.push_back(step.at(name).seconds);
    phase.seconds = Median(seconds);
  }
  return median;
}

/// One model in one precision, run as the engine runs it: planned segments, candidates, decisions about open blocks.
class EngineBench {
 public:
  EngineBench(const Options& options, const Precision& precision)
      : options_(options), precision_(precision), clock_(ClockOf(options.threads)), ranks_(MakeLocalCommunicator()) {}

  absl::Status Load(const Checkpoint& checkpoint);
  /// Prints the case's phases.
  absl::Status Measure(const std::string& name, int32_t rows);

 private:
  // One thread is measured by its processor time, so that other work on the machine does not show.
  static TimedHostOps::Clock ClockOf(int32_t threads) {
    if (threads == 1) return ThreadSeconds;
    return [] { return absl::ToDoubleSeconds(MonotonicNow()); };
  }
  RunningSequence MakeRunning(int32_t index, int32_t block) const;
  absl::Status RunOnce(StepRunner& runner, const std::vector<PlannedSegment>& plan);
  absl::StatusOr<Phases> RunStep(StepRunner& runner, const std::vector<PlannedSegment>& plan, int32_t rows);
  void Note(const TimedHostOps::Call& call);
  std::string PhaseOf(const TimedHostOps::Call& call) const;
  int32_t PagesOfSequence() const { return (options_.context + kBlockMax + kPageSize - 1) / kPageSize; }
  void Print(const std::string& name, int32_t rows, const Phases& phases, const MachineCeilings& machine) const;

  const Options& options_;
  const Precision precision_;
  const TimedHostOps::Clock clock_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Communicator> ranks_;
  std::unique_ptr<Transformer> model_;
  ModelSpec spec_;
  int32_t rows_ = 0;  // Of the step that runs.
  Phases phases_;
};

absl::Status EngineBench::Load(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(spec_, LoadModelSpec(checkpoint));
  if (spec_.grid != BlockGrid::kAbsolute) {
    return absl::InvalidArgumentError("expected a block-causal model, whose steps run blocks alone");
  }
  ops_ = std::make_unique<TimedHostOps>(
      MakeCpuOps(precision_.activations, {.threads = options_.threads, .int8_layers = precision_.int8_layers}), clock_,
      [this](const TimedHostOps::Call& call) { Note(call); });
  const int32_t rows_max = std::max(*std::max_element(options_.rows.begin(), options_.rows.end()), options_.context);
  const int32_t sequences_max = (rows_max + kBlockMax - 1) / kBlockMax;
  ASSIGN_OR_RETURN(model_, Transformer::Load(spec_, checkpoint, *ops_, *ranks_, rows_max,
                                             sequences_max * PagesOfSequence(), kPageSize));
  return absl::OkStatus();
}

/// A sequence whose open block stays open.
RunningSequence EngineBench::MakeRunning(int32_t index, int32_t block) const {
  SequenceSpec wanted;
  wanted.grid = spec_.grid;
  wanted.shift = spec_.shift;
  wanted.mask_id = spec_.mask_id;
  wanted.positions_max = static_cast<int32_t>(spec_.positions_max);
  for (int32_t i = 0; i < options_.context; ++i) {
    wanted.prompt.push_back(static_cast<TokenId>((int64_t{index} * 7919 + int64_t{i} * 104729) % spec_.mask_id));
  }
  wanted.tokens_max = block;
  wanted.decoding.block_length = block;
  wanted.decoding.steps = block;
  RunningSequence running{.id = static_cast<uint64_t>(index), .sequence = Sequence(wanted)};
  for (int32_t page = 0; page < PagesOfSequence(); ++page) running.pages.push_back(index * PagesOfSequence() + page);
  return running;
}

absl::Status EngineBench::RunOnce(StepRunner& runner, const std::vector<PlannedSegment>& plan) {
  RETURN_IF_ERROR(runner.Launch(plan, 0, 1));
  while (true) {
    ASSIGN_OR_RETURN(const bool stepped, runner.Next());
    if (!stepped) return absl::OkStatus();
  }
}

std::string EngineBench::PhaseOf(const TimedHostOps::Call& call) const {
  const std::string operation = call.operation;
  if (operation == "product") {
    const int64_t in = call.weight->in_features(), out = call.weight->out_features();
    if (out == (spec_.heads + 2 * spec_.kv_heads) * spec_.head_size && in == spec_.hidden) return "qkv";
    return out == spec_.hidden && in == spec_.heads * spec_.head_size ? "out" : "mlp";
  }
  if (operation == "rotation" || operation == "bias") return "norms";
  if (operation == "activation" || operation == "routing" || operation == "experts") return "mlp";
  if (operation == "gathering") return "head";
  return operation == "upload" || operation == "download" ? "engine" : operation;
}

void EngineBench::Note(const TimedHostOps::Call& call) {
  Phase& phase = phases_[PhaseOf(call)];
  phase.seconds += call.ended - call.began;
  if (call.weight == nullptr) return;
  const double products = static_cast<double>(call.weight->in_features() * call.weight->out_features()) * rows_;
  const bool head = std::string(call.operation) == "head";
  phase.bytes += static_cast<double>(call.weight->bytes());
  phase.flops[head ? precision_.head() : precision_.layers()] += 2.0 * products;
}

absl::StatusOr<Phases> EngineBench::RunStep(StepRunner& runner, const std::vector<PlannedSegment>& plan, int32_t rows) {
  phases_.clear();
  for (const char* name : kPhases) phases_[name];
  rows_ = rows;
  const double began = clock_();
  RETURN_IF_ERROR(RunOnce(runner, plan));
  double rest = clock_() - began;
  for (const auto& [name, phase] : phases_) rest -= name == "engine" ? 0.0 : phase.seconds;
  phases_["engine"].seconds = rest;
  const RankBudget budget = BudgetOf(spec_, *MakeShard(spec_, 0, 1), precision_.activations);
  double keys = 0.0, pairs = 0.0;
  for (const PlannedSegment& planned : plan) {
    keys += planned.segment.keys;
    pairs += static_cast<double>(planned.segment.keys) * planned.segment.rows;
  }
  phases_["attention"].bytes = static_cast<double>(budget.kv_position_bytes) * keys;
  phases_["attention"].flops[GemmArithmetic::kF32] = static_cast<double>(budget.attention_flops) * pairs;
  return phases_;
}

absl::Status EngineBench::Measure(const std::string& name, int32_t rows) {
  const int32_t block = std::min(rows, kBlockMax), sequences = rows / block;
  StepRunner runner(*model_, *ops_, *ranks_,
                    {.rows_max = std::max(rows, options_.context), .sequences_max = sequences});
  RETURN_IF_ERROR(runner.Allocate());
  std::vector<RunningSequence> running;
  for (int32_t i = 0; i < sequences; ++i) running.push_back(MakeRunning(i, block));
  std::vector<PlannedSegment> plan;
  for (RunningSequence& sequence : running) {
    const Segment prefill = sequence.sequence.Next(options_.context);
    RETURN_IF_ERROR(RunOnce(runner, {{&sequence, prefill}}));
    sequence.sequence.ApplyPrefill(prefill);
    plan.push_back({&sequence, sequence.sequence.Next(rows)});
    CHECK(plan.back().segment.rows == block);
  }
  RETURN_IF_ERROR(RunOnce(runner, plan));
  CeilingProbe probe(options_.threads, clock_);
  std::vector<Phases> steps;
  const double began = clock_();
  while (static_cast<int>(steps.size()) < kStepsMin || clock_() - began < options_.seconds) {
    ASSIGN_OR_RETURN(Phases step, RunStep(runner, plan, rows));
    steps.push_back(std::move(step));
    probe.Turn();
  }
  Print(name, rows, MedianOf(steps), probe.Medians());
  return absl::OkStatus();
}

void EngineBench::Print(const std::string& name, int32_t rows, const Phases& phases,
                        const MachineCeilings& machine) const {
  double seconds = 0.0;
  Phase whole;
  for (const auto& [phase_name, phase] : phases) {
    seconds += phase.seconds;
    whole.bytes += phase.bytes;
    for (const auto& [kind, flops] : phase.flops) whole.flops[kind] += flops;
  }
  const double floor = FloorOf(whole, machine);
  std::printf("engine  %-9s %3d rows: %8.1f ms a step, floor %8.1f ms, measured / floor %4.2f, %7.1f rows/s |",
              name.c_str(), rows, 1e3 * seconds, 1e3 * floor, seconds / floor, rows / seconds);
  for (const char* phase_name : kPhases) {
    const Phase& phase = phases.at(phase_name);
    const double phase_floor = FloorOf(phase, machine);
    std::printf(" %s %.2f", phase_name, 1e3 * phase.seconds);
    if (phase_floor > 0.0) std::printf(" (%.2f)", phase.seconds / phase_floor);
  }
  std::printf(" | %.1f GB/s, f32 %.0f bf16 %.0f int8 %.0f Gop/s\n", 1e-9 * machine.bytes_per_second,
              1e-9 * machine.flops_per_second.at(GemmArithmetic::kF32),
              1e-9 * machine.flops_per_second.at(GemmArithmetic::kBf16),
              1e-9 * machine.flops_per_second.at(GemmArithmetic::kInt8));
  std::fflush(stdout);
}

absl::Status MeasureAll(const Options& options) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  std::printf("engine  %s, %d positions of context, %d thread%s by %s time; ms by phase (measured / floor)\n",
              options.model.c_str(), options.context, options.threads, options.threads == 1 ? "" : "s",
              options.threads == 1 ? "processor" : "wall clock");
  for (const std::string& name : options.precisions) {
    const Precision& precision = kPrecisions.at(name);
    if (precision.int8_layers && !HasInt8Products()) {
      std::printf("engine  %s: this processor does not add up products of bytes exactly\n", name.c_str());
      continue;
    }
    EngineBench bench(options, precision);
    RETURN_IF_ERROR(bench.Load(*checkpoint));
    for (const int32_t rows : options.rows) RETURN_IF_ERROR(bench.Measure(name, rows));
  }
  return absl::OkStatus();
}

int Run(int argc, char** argv) {
  Options options;
  std::vector<std::string> names;
  for (const auto& [name, precision] : kPrecisions) names.push_back(name);
  CLI::App app("Measures a step of the engine phase by phase.", "quicksilver_bench_engine");
  app.add_option("--model", options.model, "Checkpoint directory of a block-causal model")->required();
  app.add_option("--precisions", options.precisions, "Of f32, bf16, int8 (f32 activations) and int8-bf16")
      ->delimiter(',')
      ->check(CLI::IsMember(names));
  app.add_option("--rows", options.rows, "Rows of a step: up to 32, or a multiple of 32")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--context", options.context, "Positions before the block; a multiple of 32")
      ->check(CLI::Range(32, 65536))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "A case, at least")->check(CLI::PositiveNumber)->capture_default_str();
  if (const std::optional<int> exit = ParseOptions(app, argc, argv); exit.has_value()) return *exit;
  for (const int32_t rows : options.rows) {
    if (rows > kBlockMax && rows % kBlockMax != 0) {
      std::cerr << "quicksilver_bench_engine: --rows: expected up to 32 or a multiple of 32, found " << rows << "\n";
      return kExitUsage;
    }
  }
  const absl::Status status = MeasureAll(options);
  if (status.ok()) return kExitOk;
  std::cerr << "quicksilver_bench_engine: " << status << "\n";
  return status.code() == absl::StatusCode::kInvalidArgument ? kExitModel : kExitInternal;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Run(argc, argv); }
