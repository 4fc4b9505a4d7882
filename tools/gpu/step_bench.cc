#include "tools/gpu/step_bench.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "tools/gpu/bench_model.h"
#include "tools/gpu/device_timer.h"
#include "worker/checkpoint/checkpoint.h"

namespace quicksilver {
namespace {

constexpr int32_t kPageSize = 64;
constexpr int kWarmUpLaunches = 3;
constexpr int kLaunchesMin = 10;

/// The same weights and cache under another mask rule.
class ModelWithBlocks final : public Transformer {
 public:
  ModelWithBlocks(Transformer& model, BlockGrid grid, int32_t block_length) : model_(model), spec_(model.spec()) {
    spec_.grid = grid;
    spec_.block_length = block_length;
  }
  const ModelSpec& spec() const override { return spec_; }
  int32_t page_size() const override { return model_.page_size(); }
  int32_t pages() const override { return model_.pages(); }
  int64_t shard_rows() const override { return model_.shard_rows(); }
  void Forward(const int32_t* ids, const StepLayout& layout) override { model_.Forward(ids, layout); }
  void Candidates(const int32_t* rows, int32_t rows_count, const CandidateBatch& batch, int32_t top_count,
                  Candidate* out, TopLogit* top) override {
    model_.Candidates(rows, rows_count, batch, top_count, out, top);
  }
  void Logits(const int32_t* rows, int32_t rows_count, Matrix out) override { model_.Logits(rows, rows_count, out); }
  void SetObserver(Observer observer) override { model_.SetObserver(std::move(observer)); }
  size_t weight_bytes() const override { return model_.weight_bytes(); }
  size_t kv_bytes() const override { return model_.kv_bytes(); }

 private:
  Transformer& model_;
  ModelSpec spec_;
};

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

/// Launches once. Appends the moments at which the steps were done.
absl::Status RunLaunch(StepRunner& runner, const std::vector<PlannedSegment>& plan, int32_t steps,
                       std::vector<absl::Duration>* done) {
  RETURN_IF_ERROR(runner.Launch(plan, /*seal=*/0, steps));
  while (true) {
    ASSIGN_OR_RETURN(const bool stepped, runner.Next());
    if (!stepped) return absl::OkStatus();
    if (done != nullptr) done->push_back(MonotonicNow());
  }
}

}  // namespace

struct StepBench::Plan {
  std::unique_ptr<ModelWithBlocks> model;
  std::unique_ptr<StepRunner> runner;
  std::vector<RunningSequence> running;
  std::vector<PlannedSegment> segments;
  int32_t steps = 0;  // Of a launch.
};

absl::StatusOr<std::unique_ptr<StepBench>> StepBench::Make(const ModelSpec& spec, TimedOps& ops, Communicator& ranks,
                                                           const StepBenchOptions& options) {
  std::unique_ptr<StepBench> bench(new StepBench(ops, ranks, options));
  const int32_t pages = options.sequences_max * bench->PagesOfSequence();
  const std::unique_ptr<Checkpoint> weights = MakeRandomWeights(spec);
  ASSIGN_OR_RETURN(bench->model_, Transformer::Load(spec, *weights, ops, ranks, options.rows_max, pages, kPageSize));
  return bench;
}

int32_t StepBench::PagesOfSequence() const { return (options_.positions_max + kPageSize - 1) / kPageSize; }

RunningSequence StepBench::MakeRunning(const ModelSpec& spec, const StepCase& of, int32_t index) const {
  SequenceSpec wanted;
  wanted.grid = spec.grid;
  wanted.mask_id = spec.mask_id;
  wanted.positions_max = static_cast<int32_t>(spec.positions_max);
  for (int32_t i = 0; i < of.context; ++i) {
    wanted.prompt.push_back(static_cast<TokenId>((int64_t{index} * 7919 + int64_t{i} * 104729) % spec.mask_id));
  }
  wanted.tokens_max = of.block_length;
  wanted.decoding.policy = Policy::kStatic;  // A token a step: the block stays open for block_length steps.
  wanted.decoding.block_length = of.block_length;
  wanted.decoding.steps = of.block_length;
  RunningSequence running{.id = static_cast<uint64_t>(index), .sequence = Sequence(wanted)};
  for (int32_t page = 0; page < PagesOfSequence(); ++page) running.pages.push_back(index * PagesOfSequence() + page);
  return running;
}

absl::StatusOr<std::unique_ptr<StepBench::Plan>> StepBench::Prepare(const StepCase& of) {
  CHECK(of.sequences <= options_.sequences_max && of.context + of.block_length <= options_.positions_max);
  auto plan = std::make_unique<Plan>();
  plan->model = std::make_unique<ModelWithBlocks>(
      *model_, of.whole_canvas ? BlockGrid::kAfterPrompt : BlockGrid::kAbsolute, of.block_length);
  plan->steps = std::min(options_.steps_per_launch, of.block_length);
  const StepRunner::Limits limits = {.rows_max = options_.rows_max,
                                     .sequences_max = of.sequences,
                                     .steps_per_launch_max = plan->steps,
                                     .record_common_shapes = false};
  plan->runner = std::make_unique<StepRunner>(*plan->model, ops_, ranks_, limits);
  RETURN_IF_ERROR(plan->runner->Allocate());
  for (int32_t i = 0; i < of.sequences; ++i) plan->running.push_back(MakeRunning(plan->model->spec(), of, i));
  RETURN_IF_ERROR(Fill(*plan, of));
  for (RunningSequence& running : plan->running) {
    const Segment segment = running.sequence.Next(options_.rows_max);
    CHECK(segment.denoise);
    plan->segments.push_back({&running, segment});
  }
  return plan;
}

// The cache is filled once for all cases: what is in it depends on the block length only a little.
absl::Status StepBench::Fill(Plan& plan, const StepCase& of) {
  if (of.whole_canvas) {
    filled_sequences_ = filled_positions_ = 0;  // The steps of this case write over it.
    return absl::OkStatus();
  }
  const int32_t filled = filled_positions_ >= of.context ? filled_sequences_ : 0;
  for (int32_t i = 0; i < of.sequences; ++i) {
    RunningSequence& running = plan.running[static_cast<size_t>(i)];
    while (running.sequence.prefill_rows() > 0) {
      const Segment segment = running.sequence.Next(std::min(options_.rows_max, running.sequence.prefill_rows()));
      if (i >= filled) RETURN_IF_ERROR(RunLaunch(*plan.runner, {{&running, segment}}, 1, nullptr));
      running.sequence.ApplyPrefill(segment);
    }
  }
  if (of.sequences > filled) filled_sequences_ = of.sequences;
  filled_positions_ = std::max(filled_positions_, of.context);
  return absl::OkStatus();
}

absl::StatusOr<StepTimes> StepBench::Time(const StepCase& of, double seconds, int launches) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan, Prepare(of));
  for (int i = 0; i < kWarmUpLaunches; ++i) {
    RETURN_IF_ERROR(RunLaunch(*plan->runner, plan->segments, plan->steps, nullptr));
  }
  StepTimes times;
  std::vector<double> device, step;
  const absl::Duration start = MonotonicNow();
  absl::Duration began = start;
  const auto enough = [&](int done) {
    if (launches > 0) return done >= launches;
    return done >= kLaunchesMin && Seconds(MonotonicNow() - start) >= seconds;
  };
  int done = 0;
  for (; !enough(done); ++done) {
    std::vector<absl::Duration> moments;
    RETURN_IF_ERROR(RunLaunch(*plan->runner, plan->segments, plan->steps, &moments));
    // Fewer than asked for where the device cannot loop.
    const auto steps = static_cast<int>(moments.size());
    times.steps_per_launch = done == 0 ? steps : std::min(times.steps_per_launch, steps);
    if (steps > 1) device.push_back(Seconds(moments.back() - moments.front()) / (steps - 1));
    const absl::Duration now = MonotonicNow();
    step.push_back(Seconds(now - began) / steps);
    began = now;
  }
  times.launches = done;
  times.step = Median(step);
  times.device = device.empty() ? 0.0 : Median(device);
  times.host_gap = std::max(0.0, times.step - times.device);
  times.step_p10 = Quantile(step, 0.1);
  times.step_p90 = Quantile(step, 0.9);
  return times;
}

absl::StatusOr<std::map<std::string, TimedOps::Part>> StepBench::Break(const StepCase& of, int steps) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan, Prepare(of));
  ops_.Listen(true);
  const auto run = [&]() -> absl::StatusOr<std::map<std::string, TimedOps::Part>> {
    RETURN_IF_ERROR(RunLaunch(*plan->runner, plan->segments, 1, nullptr));
    ops_.Listen(true);  // Forgets the first step, which may have tried out products.
    for (int i = 0; i < steps; ++i) RETURN_IF_ERROR(RunLaunch(*plan->runner, plan->segments, 1, nullptr));
    return ops_.Parts();
  };
  absl::StatusOr<std::map<std::string, TimedOps::Part>> parts = run();
  ops_.Listen(false);
  return parts;
}

}  // namespace quicksilver
