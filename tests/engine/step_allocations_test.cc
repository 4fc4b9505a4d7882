#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/allocations.h"
#include "worker/collectives/local_communicator.h"
#include "worker/engine/step_runner.h"
#include "worker/model/load_spec.h"
#include "worker/model/transformer.h"

namespace quicksilver {
namespace {

constexpr int32_t kPageSize = 64;
constexpr int32_t kPrompt = 40;

struct Case {
  const char* name;
  DType activations;
  bool int8_layers;
};

/// One rank on the demo model, without the engine around it.
class StepAllocationsTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().int8_layers && !HasInt8Products()) {
      GTEST_SKIP() << "this processor does not add up products of bytes exactly";
    }
    ops_ = MakeCpuOps(GetParam().activations, {.threads = 2, .int8_layers = GetParam().int8_layers});
    const auto checkpoint = *Checkpoint::Open(QUICKSILVER_ROOT "/models/demo");
    const ModelSpec spec = *LoadModelSpec(*checkpoint);
    model_ = *Transformer::Load(spec, *checkpoint, *ops_, *ranks_, /*rows_max=*/256, /*pages=*/16, kPageSize);
    runner_ =
        std::make_unique<StepRunner>(*model_, *ops_, *ranks_, StepRunner::Limits{.rows_max = 256, .sequences_max = 8});
    ASSERT_TRUE(runner_->Allocate().ok());
  }

  RunningSequence MakeRunning(int32_t index, float temperature, float top_p) {
    const ModelSpec& spec = model_->spec();
    SequenceSpec wanted;
    wanted.grid = spec.grid;
    wanted.mask_id = spec.mask_id;
    wanted.positions_max = static_cast<int32_t>(spec.positions_max);
    for (int32_t i = 0; i < kPrompt; ++i) wanted.prompt.push_back((7 * i + index) % 256);
    wanted.tokens_max = 64;
    wanted.sampling.temperature = temperature;
    wanted.sampling.top_p = top_p;
    wanted.decoding.block_length = spec.block_length;
    wanted.decoding.steps = spec.block_length;
    RunningSequence running{.id = static_cast<uint64_t>(index), .sequence = Sequence(wanted)};
    for (int32_t page = 0; page < 2; ++page) running.pages.push_back(2 * index + page);
    return running;
  }

  void RunOnce(const std::vector<PlannedSegment>& plan) {
    ASSERT_TRUE(runner_->Launch(plan, 0, 1).ok());
    while (*runner_->Next()) {
    }
  }

  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Communicator> ranks_ = MakeLocalCommunicator();
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<StepRunner> runner_;
};

// oneDNN makes a small table of arguments at every call, which we cannot keep it from.
TEST_P(StepAllocationsTest, AStepOfAShapeThatRanBeforeAllocatesNothingItself) {
  std::vector<RunningSequence> running;
  running.push_back(MakeRunning(0, 0.0f, 1.0f));
  running.push_back(MakeRunning(1, 0.8f, 1.0f));
  running.push_back(MakeRunning(2, 0.8f, 0.9f));  // Needs the list of its largest logits.
  std::vector<PlannedSegment> plan;
  for (RunningSequence& sequence : running) {
    const Segment prefill = sequence.sequence.Next(kPrompt);
    RunOnce({{&sequence, prefill}});
    sequence.sequence.ApplyPrefill(prefill);
    plan.push_back({&sequence, sequence.sequence.Next(64)});
  }
  RunOnce(plan);
  own_allocations = 0;
  RunOnce(plan);
  const size_t allocations = own_allocations.load();  // A failing expectation allocates.
  EXPECT_EQ(allocations, 0u);
}

INSTANTIATE_TEST_SUITE_P(Every, StepAllocationsTest,
                         ::testing::Values(Case{"F32", DType::kF32, false}, Case{"Bf16", DType::kBf16, false},
                                           Case{"Int8", DType::kF32, true}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(AllocationsTest, CountsWhatThisProgramAsksFor) {
  own_allocations = 0;
  largest_allocation = 0;
  const auto memory = std::make_unique<std::vector<char>>(12345);
  EXPECT_GE(own_allocations.load(), 1u);
  EXPECT_EQ(largest_allocation.load(), 12345u);
}

}  // namespace
}  // namespace quicksilver
