#include <string>

#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

using MemoryTest = OpsTest;

TEST_P(MemoryTest, AllocationsAreZeroed) {
  for (const size_t bytes : {size_t{1}, size_t{1000}, size_t{3} << 20}) {
    // The second allocation may get the first one's memory.
    for (int round = 0; round < 2; ++round) {
      absl::StatusOr<DeviceBuffer> buffer = ops().Allocate(bytes);
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      EXPECT_EQ(buffer->bytes(), bytes);
      std::string content(bytes, 'x');
      ops().Download(buffer->data(), content.data(), bytes);
      ASSERT_TRUE(ops().Synchronize().ok());
      EXPECT_EQ(content, std::string(bytes, '\0'));
      content.assign(bytes, 'y');
      ops().Upload(content.data(), buffer->data(), bytes);
      ASSERT_TRUE(ops().Synchronize().ok());
    }
  }
}

TEST_P(MemoryTest, AnAllocationThatCannotFitIsRefused) {
  const absl::StatusOr<DeviceBuffer> buffer = ops().Allocate(size_t{1} << 60);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(buffer.status().message()).find(std::to_string(size_t{1} << 60)), std::string::npos);
}

TEST_P(MemoryTest, MovingABufferKeepsItsMemory) {
  DeviceBuffer first = std::move(ops().Allocate(64)).value();
  void* const data = first.data();
  DeviceBuffer second;
  second = std::move(first);
  EXPECT_EQ(second.data(), data);
  second = std::move(ops().Allocate(16)).value();
  EXPECT_EQ(second.bytes(), 16u);
}

INSTANTIATE_OPS_TEST(MemoryTest);

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
