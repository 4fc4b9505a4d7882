#include "absl/strings/str_cat.h"
#include "tests/kernels/cuda/attention_run.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

class AttentionOrderTest : public ::testing::Test {
 protected:
  void TearDown() override { cuda_twin::TwinDevice().Reset(); }
};

TEST_F(AttentionOrderTest, NoBitDependsOnTheOrderOfThreads) {
  for (const auto& [head_size, dtype] : {std::pair{64, DType::kBf16}, {256, DType::kBf16}, {24, DType::kF32}}) {
    SCOPED_TRACE(absl::StrCat("hd ", head_size));
    const AttentionShape shape = {2, 1, head_size, 16, 4};
    const std::vector<TestSequence> sequences = {RandomSequence(shape, 8, 168, 179, 1),
                                                 RandomSequence(shape, 45, 0, 45, 2)};
    const HostMatrix expected = RunKernels(shape, sequences, dtype, {.split = attention::Split::kAlways});
    for (const uint64_t seed : {1, 2, 3, 4}) {
      cuda_twin::TwinDevice().SetThreadOrderSeed(seed);
      ExpectSameBits(RunKernels(shape, sequences, dtype, {.split = attention::Split::kAlways}), expected);
    }
  }
}

}  // namespace
}  // namespace quicksilver
