#include "tests/kernels/cuda/candidates_run.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

class CandidatesOrderTest : public ::testing::Test {
 protected:
  void TearDown() override { cuda_twin::TwinDevice().Reset(); }
};

TEST_F(CandidatesOrderTest, NoBitDependsOnTheOrderOfThreadsAndBlocks) {
  const int32_t rows = 3, columns = 9100;
  CandidatesCase c = {.logits = RandomMatrix(rows, columns, 8, 3.0f),
                      .shard = {.vocabulary = columns, .mask_id = 70},
                      .requests = MixedRequests(6, rows, 0, columns),
                      .top_count = 256};
  // Rising, so that the lists are sorted again and again.
  for (int32_t id = 0; id < columns; ++id) c.logits.at(1, id) += 0.01f * static_cast<float>(id);
  const CandidatesOutput expected = RunCandidatesOn(c);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    cuda_twin::TwinDevice().SetThreadOrderSeed(seed);
    EXPECT_TRUE(SameBits(RunCandidatesOn(c), expected)) << "seed " << seed;
    EXPECT_TRUE(SameBits(RunCandidatesOn(c, size_t{2048} * rows * sizeof(float)), expected)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace quicksilver
