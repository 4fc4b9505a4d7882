// Measures denoising steps of published model shapes, with random weights, on a CUDA device against the floor that its
// measured ceilings set. A line of JSON on standard output for the ceilings and for every case, progress on the other.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/overlap.h"
#include "tools/gpu/bench_cases.h"
#include "tools/gpu/bench_model.h"
#include "tools/gpu/bench_row.h"
#include "tools/gpu/measure_ceilings.h"
#include "tools/gpu/rank_processes.h"
#include "tools/gpu/step_bench.h"
#include "tools/gpu/timed_ops.h"
#include "worker/collectives/local_communicator.h"

namespace quicksilver {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::vector<std::string> only;
  std::vector<double> ceilings;  // GB/s, TFLOP/s, TFLOP/s
  bool list = false;
  bool toy = false;
  bool breakdown = false;
  bool ceilings_only = false;
  double seconds = 2.0;
  int device = 0;
  int rank = -1;
  std::string rendezvous;
};

void Print(const ordered_json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

void Say(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

/// Everything that cases of one model and arithmetic share. Each needs those before it.
struct Loaded {
  std::unique_ptr<TimedOps> ops;
  std::unique_ptr<Communicator> ranks;
  std::unique_ptr<StepBench> bench;
};

bool SameModel(const BenchCase& a, const BenchCase& b) {
  return a.model == b.model && a.fp8_layers == b.fp8_layers && a.deterministic == b.deterministic && a.ranks == b.ranks;
}

/// Room for the largest of the `cases` that share the model of `of`.
StepBenchOptions RoomFor(const std::vector<BenchCase>& cases, const BenchCase& of) {
  StepBenchOptions room;
  for (const BenchCase& each : cases) {
    if (!SameModel(each, of)) continue;
    room.rows_max = std::max({room.rows_max, static_cast<int32_t>(WorkOf(each.step).rows), each.step.context});
    room.sequences_max = std::max(room.sequences_max, each.step.sequences);
    room.positions_max = std::max(room.positions_max, each.step.context + each.step.block_length);
    if (each.ranks > 1) room.steps_per_launch = 4;  // Ranks that share a device wait for each other's turns.
  }
  return room;
}

class Bench {
 public:
  Bench(const Options& options, std::vector<BenchCase> cases, const Ceilings& ceilings)
      : options_(options), cases_(std::move(cases)), ceilings_(ceilings) {}

  /// The number of cases that failed.
  int Run();

 private:
  absl::StatusOr<ordered_json> RunCase(const BenchCase& of);
  absl::StatusOr<ordered_json> RunStep(const BenchCase& of);
  absl::Status Load(const BenchCase& of);
  void Unload();
  void PrintProducts(const BenchCase& of, const GemmPlansReport& report) const;
  absl::Status PrintBreakdown(const BenchCase& of);

  const Options& options_;
  const std::vector<BenchCase> cases_;
  const Ceilings ceilings_;
  const BenchCase* loaded_for_ = nullptr;
  Loaded loaded_;
};

int Bench::Run() {
  int failed = 0;
  for (size_t i = 0; i < cases_.size(); ++i) {
    const BenchCase& of = cases_[i];
    const absl::Duration began = MonotonicNow();
    Say(absl::StrCat("[", i + 1, "/", cases_.size(), "] ", of.name));
    const absl::StatusOr<ordered_json> row = RunCase(of);
    if (!row.ok()) {
      ++failed;
      Print({{"kind", "failed"}, {"case", of.name}, {"what", of.what}, {"error", std::string(row.status().message())}});
      Say(absl::StrCat("  failed: ", std::string(row.status().message())));
    } else if (!row->is_null()) {
      Print(*row);
      Say(absl::StrFormat("  %.1f us, floor %.1f us, in %.0f s", row->at("measured_us").get<double>(),
                          row->at("floor_us").get<double>(), absl::ToDoubleSeconds(MonotonicNow() - began)));
    }
  }
  Unload();
  return failed;
}

absl::StatusOr<ordered_json> Bench::RunCase(const BenchCase& of) {
  if (!of.model.empty()) return RunStep(of);
  Unload();
  ASSIGN_OR_RETURN(std::unique_ptr<Ops> ops, MakeCudaOps({.device = options_.device}));
  TimedOps timed(std::move(ops));
  const int rounds = options_.toy ? 1 : 30;
  if (of.experts.rows > 0) {
    ASSIGN_OR_RETURN(const ExpertsTimes times, TimeExperts(timed, of.experts, rounds));
    return ExpertsRow(of, times, ceilings_);
  }
  ASSIGN_OR_RETURN(const CandidatesTimes times, TimeCandidates(timed, of.candidates, rounds));
  return CandidatesRow(of, times, ceilings_);
}

/// The algorithms of all batches that ran, and the fastest that had to be refused.
void Bench::PrintProducts(const BenchCase& of, const GemmPlansReport& report) const {
  if (options_.rank > 0) return;
  const std::vector<std::string> choices = absl::StrSplit(report.choices, '\n', absl::SkipEmpty());
  Print({{"kind", "products"},
         {"case", of.name},
         {"families", report.families},
         {"plans", report.plans},
         {"algorithms_tried", report.algorithms_tried},
         {"algorithms_refused", report.algorithms_refused},
         {"batches_refused", report.rows_refused},
         {"choices", choices}});
}

void Bench::Unload() {
  if (loaded_for_ != nullptr) PrintProducts(*loaded_for_, loaded_.ops->products());
  loaded_for_ = nullptr;
  loaded_.bench.reset();
  loaded_.ranks.reset();
  loaded_.ops.reset();
}

absl::Status Bench::Load(const BenchCase& of) {
  if (loaded_for_ != nullptr && SameModel(*loaded_for_, of)) return absl::OkStatus();
  Unload();
  ASSIGN_OR_RETURN(
      std::unique_ptr<Ops> ops,
      MakeCudaOps({.device = options_.device, .deterministic = of.deterministic, .fp8_layers = of.fp8_layers}));
  loaded_.ops = std::make_unique<TimedOps>(std::move(ops));
  if (of.ranks == 1) {
    loaded_.ranks = MakeLocalCommunicator();
  } else {
    ASSIGN_OR_RETURN(loaded_.ranks, JoinRanks(options_.rank, of.ranks, options_.rendezvous, loaded_.ops->stream()));
  }
  ASSIGN_OR_RETURN(const ModelSpec spec, PublishedSpec(of.model));
  ASSIGN_OR_RETURN(loaded_.bench, StepBench::Make(spec, *loaded_.ops, *loaded_.ranks, RoomFor(cases_, of)));
  loaded_for_ = &of;
  return absl::OkStatus();
}

// With several ranks every process measures, and the first one reports.
absl::StatusOr<ordered_json> Bench::RunStep(const BenchCase& of) {
  if (of.ranks > 1 && options_.rank < 0) {
    Unload();
    return RunRanks(of.name, of.ranks, options_.toy, options_.device, ceilings_);
  }
  RETURN_IF_ERROR(Load(of));
  const int launches = options_.toy ? 2 : of.ranks > 1 ? 5 : 0;
  ASSIGN_OR_RETURN(const StepTimes times, loaded_.bench->Time(of.step, options_.seconds, launches));
  if (options_.breakdown) RETURN_IF_ERROR(PrintBreakdown(of));
  if (options_.rank > 0) return ordered_json();
  const ModelSpec& spec = loaded_.bench->model().spec();
  ASSIGN_OR_RETURN(const Shard whole, MakeShard(spec, 0, 1));
  return StepRow(of, times, CostOf(spec, whole, WorkOf(of.step), of.fp8_layers), ceilings_);
}

absl::Status Bench::PrintBreakdown(const BenchCase& of) {
  const int steps = options_.toy ? 1 : 10;
  using Parts = std::map<std::string, TimedOps::Part>;
  ASSIGN_OR_RETURN(const Parts parts, loaded_.bench->Break(of.step, steps));
  ordered_json list = ordered_json::array();
  for (const auto& [kind, part] : parts) {
    list.push_back({{"operation", kind},
                    {"calls", part.calls / steps},
                    {"us", part.seconds * 1e6 / steps},
                    {"weight_floor_us", part.bytes / ceilings_.copy_bytes_per_second * 1e6 / steps}});
  }
  Print({{"kind", "breakdown"}, {"case", of.name}, {"parts", list}});
  return absl::OkStatus();
}

/// Those of `cases` whose name begins with one of `only`; all when it is empty.
std::vector<BenchCase> Select(std::vector<BenchCase> cases, const std::vector<std::string>& only) {
  std::erase_if(cases, [&](const BenchCase& each) {
    return !only.empty() && std::none_of(only.begin(), only.end(), [&](const std::string& prefix) {
      return absl::StartsWith(each.name, prefix);
    });
  });
  return cases;
}

absl::StatusOr<int> Measure(const Options& options, const std::vector<BenchCase>& cases) {
  ASSIGN_OR_RETURN(const CudaDevice device, OpenCudaDevice(options.device));
  Ceilings ceilings;
  if (options.ceilings.empty()) {
    Say("measuring the ceilings");
    const CeilingSizes toy = {.copy_bytes = 4096, .product = 64, .rounds = 1};
    ASSIGN_OR_RETURN(ceilings, MeasureCeilings(options.toy ? toy : CeilingSizes()));
  } else {
    ceilings = {options.ceilings[0] * 1e9, options.ceilings[1] * 1e12, options.ceilings[2] * 1e12};
  }
  if (options.rank < 0) {
    ordered_json line = {{"kind", "ceilings"}, {"device", device.name}, {"multiprocessors", device.multiprocessors}};
    line.update(CeilingsObject(ceilings));
    Print(line);
  }
  if (options.ceilings_only) return 0;
  return Bench(options, cases, ceilings).Run();
}

int Run(int argc, char** argv) {
  Options options;
  CLI::App app("Measures denoising steps with random weights on a CUDA device.", "bench_gpu");
  app.add_option("--only", options.only, "Cases whose names begin so, separated by commas")->delimiter(',');
  app.add_flag("--list", options.list, "Print the names of the cases, a line each, and end");
  app.add_flag("--ceilings-only", options.ceilings_only, "Measure nothing but the ceilings");
  app.add_option("--ceilings", options.ceilings,
                 "Take these in place of measuring: copy GB/s, bf16 TFLOP/s, fp8 TFLOP/s")
      ->delimiter(',')
      ->expected(3)
      ->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "For each case")->check(CLI::Range(0.0, 600.0))->capture_default_str();
  app.add_flag("--breakdown", options.breakdown, "Also say which operations a step spends its time on");
  app.add_option("--device", options.device, "As CUDA counts them")->check(CLI::Range(0, 63))->capture_default_str();
  app.add_flag("!--no-overlap", kernel_overlap, "Start every kernel after the end of the one before");
  app.add_flag("--toy", options.toy, "Tiny sizes, to see that everything runs: the figures mean nothing");
  app.add_option("--rank", options.rank, "Set by the parent process")->group("");
  app.add_option("--rendezvous", options.rendezvous, "Set by the parent process")->group("");
  if (const std::optional<int> exit = ParseOptions(app, argc, argv); exit.has_value()) return *exit;
  const std::vector<BenchCase> cases = Select(BenchCases(options.toy), options.only);
  if (options.list) {
    for (const BenchCase& each : cases) std::printf("%s\n", each.name.c_str());
    return kExitOk;
  }
  if (cases.empty()) {
    Say("bench_gpu: --only selects no case; --list names them");
    return kExitUsage;
  }
  const absl::StatusOr<int> failed = Measure(options, cases);
  if (failed.ok()) return *failed == 0 ? kExitOk : kExitInternal;
  Say(absl::StrCat("bench_gpu: ", std::string(failed.status().message())));
  return absl::IsFailedPrecondition(failed.status()) ? kExitModel : kExitInternal;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Run(argc, argv); }
