#include <gtest/gtest.h>

#include "kernels/cpu/cpu_ops.h"
#include "tests/support/random_matrix.h"

namespace quicksilver {
namespace {

TEST(CpuMemoryTest, TheBoundCountsWhatIsHeldAndForgetsWhatIsFreed) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(DType::kF32, {.memory_bytes_max = 1 << 20});
  absl::StatusOr<DeviceBuffer> first = ops->Allocate(700 << 10);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(ops->Allocate(400 << 10).status().code(), absl::StatusCode::kResourceExhausted);
  *first = DeviceBuffer();
  EXPECT_TRUE(ops->Allocate(400 << 10).ok());
}

TEST(CpuMemoryTest, WeightsCountToo) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(DType::kF32, {.memory_bytes_max = 1 << 20});
  const HostMatrix weight = RandomMatrix(512, 640, 1);  // 1.25 MiB
  const ConstMatrix host(weight.values.data(), 512, 640, 640, DType::kF32);
  EXPECT_EQ(ops->PrepareWeight(host, WeightRole::kLayer).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace quicksilver
