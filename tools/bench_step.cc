// Measures one denoising step of a model on the CPU, one rank, one sequence: the whole step as the engine runs it
// (plan, upload, forward, candidates, merge, policy) against the sum of its matrix products alone, turn by turn in one
// run.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "kernels/cpu/cpu_ops.h"
#include "worker/collectives/local_communicator.h"
#include "worker/decoding/sequence.h"
#include "worker/engine/step_runner.h"
#include "worker/model/load_spec.h"
#include "worker/model/transformer.h"

namespace quicksilver {
namespace {

constexpr int32_t kPageSize = 64;
constexpr int32_t kContext = 64;

double Microseconds(absl::Duration d) { return absl::ToDoubleMicroseconds(d); }

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// Every matrix product of one step, on weights of its own so that the caches see the same bytes as in the model.
class Products {
 public:
  static absl::StatusOr<Products> Make(const ModelSpec& spec, Ops& ops, int32_t rows) {
    Products products;
    const int64_t heads = spec.heads * spec.head_size, kv = spec.kv_heads * spec.head_size;
    std::vector<std::pair<int64_t, int64_t>> shapes;  // [out, in]
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      shapes.insert(
          shapes.end(),
          {{heads + 2 * kv, spec.hidden}, {spec.hidden, heads}, {2 * spec.mlp, spec.hidden}, {spec.hidden, spec.mlp}});
    }
    shapes.push_back({spec.vocabulary, spec.hidden});
    size_t widest = 0;
    for (const auto& [out, in] : shapes) {
      const std::vector<float> values(static_cast<size_t>(out * in), 0.01f);
      ASSIGN_OR_RETURN(auto weight, ops.PrepareWeight({values.data(), out, in, in, DType::kF32}, WeightRole::kLayer));
      products.weights_.push_back(std::move(weight));
      widest = std::max({widest, static_cast<size_t>(out), static_cast<size_t>(in)});
    }
    const size_t bytes = widest * static_cast<size_t>(rows) * ElementBytes(ops.activation_dtype());
    ASSIGN_OR_RETURN(products.in_, ops.Allocate(bytes));
    ASSIGN_OR_RETURN(products.out_, ops.Allocate(bytes));
    products.rows_ = rows;
    return products;
  }

  double RunMicroseconds(Ops& ops) const {
    const absl::Duration start = MonotonicNow();
    const DType dtype = ops.activation_dtype();
    for (const auto& weight : weights_) {
      const int64_t in = weight->in_features(), out = weight->out_features();
      ops.Gemm({in_.data(), rows_, in, in, dtype}, *weight, {out_.data(), rows_, out, out, dtype});
    }
    CHECK(ops.Synchronize().ok());
    return Microseconds(MonotonicNow() - start);
  }

 private:
  std::vector<std::unique_ptr<GemmWeight>> weights_;
  DeviceBuffer in_, out_;
  int32_t rows_ = 0;
};

struct Options {
  std::string model;
  int rounds = 400;
};

/// A sequence whose open block never closes within the rounds: its every step denoises one block behind `kContext`
/// clean positions.
RunningSequence MakeRunning(const ModelSpec& spec) {
  SequenceSpec wanted;
  wanted.grid = spec.grid;
  wanted.mask_id = spec.mask_id;
  wanted.positions_max = static_cast<int32_t>(spec.positions_max);
  for (int32_t i = 0; i < kContext; ++i) wanted.prompt.push_back(i % 256);
  wanted.tokens_max = spec.block_length;
  wanted.decoding.block_length = spec.block_length;
  wanted.decoding.steps = spec.block_length;
  RunningSequence running{.sequence = Sequence(wanted)};
  for (int32_t page = 0; page < 2 * kContext / kPageSize + 1; ++page) running.pages.push_back(page);
  return running;
}

absl::Status RunOnce(StepRunner& runner, const PlannedSegment& planned) {
  RETURN_IF_ERROR(runner.Launch({planned}, 0, 1));
  while (true) {
    ASSIGN_OR_RETURN(const bool stepped, runner.Next());
    if (!stepped) return absl::OkStatus();
  }
}

absl::Status Measure(const Options& options) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(*checkpoint));
  const auto ops = MakeCpuOps(DType::kF32, {.threads = 1});
  const auto ranks = MakeLocalCommunicator();
  ASSIGN_OR_RETURN(const auto model, Transformer::Load(spec, *checkpoint, *ops, *ranks, 512, 16, kPageSize));
  StepRunner runner(*model, *ops, *ranks, {.rows_max = 512, .sequences_max = 4});
  RETURN_IF_ERROR(runner.Allocate());
  ASSIGN_OR_RETURN(const Products products, Products::Make(spec, *ops, spec.block_length));

  RunningSequence running = MakeRunning(spec);
  const Segment prefill = running.sequence.Next(kContext);
  RETURN_IF_ERROR(RunOnce(runner, {&running, prefill}));
  running.sequence.ApplyPrefill(prefill);
  const Segment denoise = running.sequence.Next(512);
  std::vector<double> steps, gemms;
  for (int i = 0; i < options.rounds; ++i) {
    const absl::Duration start = MonotonicNow();
    RETURN_IF_ERROR(RunOnce(runner, {&running, denoise}));
    steps.push_back(Microseconds(MonotonicNow() - start));
    gemms.push_back(products.RunMicroseconds(*ops));
  }
  const double step = Median(steps), gemm = Median(gemms);
  std::printf(
      "step         %s, %d rows behind %d positions, f32, one thread: %.0f us a denoise step, %.0f us its matrix "
      "products alone, "
      "ratio %.2f (aim <= 1.5)\n",
      options.model.c_str(), spec.block_length, kContext, step, gemm, step / gemm);
  return absl::OkStatus();
}

int Run(int argc, char** argv) {
  Options options;
  CLI::App app("Measures one denoising step against its matrix products.", "quicksilver_bench_step");
  app.add_option("--model", options.model, "Checkpoint directory")->required();
  app.add_option("--rounds", options.rounds)->check(CLI::Range(1, 1000000))->capture_default_str();
  if (const std::optional<int> exit = ParseOptions(app, argc, argv); exit.has_value()) return *exit;
  const absl::Status status = Measure(options);
  if (status.ok()) return kExitOk;
  std::cerr << "quicksilver_bench_step: " << status << "\n";
  return status.code() == absl::StatusCode::kInvalidArgument ? kExitModel : kExitInternal;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Run(argc, argv); }
