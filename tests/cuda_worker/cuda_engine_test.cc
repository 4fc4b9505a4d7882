// Whole engines on the CUDA backend: recorded steps, several to a launch, decided on the device.
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cuda/cuda_ops.h"
#include "tests/support/engine_group.h"
#include "tests/support/golden.h"
#ifdef QUICKSILVER_CUDA_TWIN
#include "tests/support/cuda_twin/twin_device.h"
#endif

namespace quicksilver {
namespace {

EngineGroup::MakeOps Cuda(DType activation) {
  return [activation] {
    absl::StatusOr<std::unique_ptr<Ops>> ops = MakeCudaOps({.activation = activation, .deterministic = true});
    CHECK(ops.ok());
    return *std::move(ops);
  };
}

std::unique_ptr<Ops> Cpu() { return MakeReferenceOps(DType::kF32); }

class CudaEngineTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << MakeCudaOps({}).status().message();
    submits_ = VariedSubmits(std::string(GetParam()) == "llada");
    // What a program is, several of them need not be shown.
    submits_.resize(6);
  }

  EngineGroup::Options OptionsFor(EngineGroup::MakeOps make_ops, int32_t steps_per_launch) {
    EngineGroup::Options options;
    options.directory = *Golden::Open()->CheckpointDirectory(GetParam(), "bf16");
    options.make_ops = std::move(make_ops);
    options.engine.step_rows_max = 192;
    options.engine.sequences_max = 4;
    options.engine.steps_per_launch_max = steps_per_launch;
    return options;
  }

  /// All at once, or one after the other.
  std::vector<Transcript> Run(const EngineGroup::Options& options, bool together) {
    absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
    EXPECT_TRUE(group.ok()) << group.status();
    std::vector<Transcript> transcripts;
    if (together) {
      absl::StatusOr<std::vector<Transcript>> all = (*group)->RunAll(submits_);
      EXPECT_TRUE(all.ok()) << all.status();
      return *std::move(all);
    }
    for (const v1::Submit& submit : submits_) {
      absl::StatusOr<std::vector<Transcript>> one = (*group)->RunAll({submit});
      EXPECT_TRUE(one.ok()) << one.status();
      transcripts.push_back((*one)[0]);
    }
    return transcripts;
  }

  std::vector<v1::Submit> submits_;
};

TEST_P(CudaEngineTest, InFloatItGivesTheTokensOfTheProcessor) {
  const std::vector<Transcript> expected = Run(OptionsFor(Cpu, 1), /*together=*/true);
  const std::vector<Transcript> actual = Run(OptionsFor(Cuda(DType::kF32), 8), /*together=*/true);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(actual[i].answer, expected[i].answer) << "sequence " << submits_[i].sequence_id();
    EXPECT_EQ(actual[i].end.reason(), expected[i].end.reason());
  }
}

// In bf16, where another order of a sum shows: neither the batch nor the steps of a launch do.
TEST_P(CudaEngineTest, ASequenceGivesTheSameBytesAloneAndInABatchAtAnyNumberOfStepsALaunch) {
  const std::vector<Transcript> alone = Run(OptionsFor(Cuda(DType::kBf16), 1), /*together=*/false);
  const std::vector<Transcript> batch = Run(OptionsFor(Cuda(DType::kBf16), 8), /*together=*/true);
  size_t tokens = 0;
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(Bytes(batch[i]), Bytes(alone[i])) << "sequence " << submits_[i].sequence_id();
    tokens += alone[i].answer.size();
  }
  EXPECT_GT(tokens, 30u) << "the answers are worth comparing";
#ifdef QUICKSILVER_CUDA_TWIN
  EXPECT_GT(cuda_twin::TwinDevice().calls("cudaGraphInstantiate"), 0u);
  EXPECT_EQ(cuda_twin::TwinDevice().calls("cudaMalloc while capturing"), 0u) << "a rehearsal prepares everything";
#endif
}

INSTANTIATE_TEST_SUITE_P(Families, CudaEngineTest, testing::Values("sdar", "llada"),
                         [](const testing::TestParamInfo<const char*>& of) { return std::string(of.param); });

}  // namespace
}  // namespace quicksilver
