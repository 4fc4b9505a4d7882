#include <cstring>
#include <numeric>
#include <string>
#include <vector>

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

TEST_P(MemoryTest, AnUploadHasReadItsSourceWhenItReturns) {
  // More than any staging memory holds, and some bytes.
  for (const size_t bytes : {size_t{10}, (size_t{40} << 20) + 10}) {
    const DeviceBuffer buffer = std::move(ops().Allocate(bytes)).value();
    std::string content(bytes, 'a');
    content.back() = 'z';
    ops().Upload(content.data(), buffer.data(), bytes);
    content.assign(bytes, 'b');
    ops().Download(buffer.data(), content.data(), bytes);
    ASSERT_TRUE(ops().Synchronize().ok());
    EXPECT_TRUE(content == std::string(bytes - 1, 'a') + "z");
  }
}

TEST_P(MemoryTest, ManyDownloadsWaitForOneSynchronize) {
  std::vector<int32_t> numbers(1000);
  std::iota(numbers.begin(), numbers.end(), 0);
  const DeviceArray<int32_t> array = PutArray(numbers);
  std::vector<int32_t> back(numbers.size(), -1);
  for (size_t i = 0; i < numbers.size(); ++i) ops().Download(array.data() + i, &back[i], sizeof(int32_t));
  ASSERT_TRUE(ops().Synchronize().ok());
  EXPECT_EQ(back, numbers);
}

TEST_P(MemoryTest, SharedMemoryIsZeroedAndSeenByBothSides) {
  const HostMatrix x = Rounded(RandomMatrix(3, 8, 1), dtype());
  const DeviceMatrix device_x = Put(x, dtype(), /*gap=*/0);
  const size_t bytes = 3 * 8 * ElementBytes(dtype());
  absl::StatusOr<DeviceBuffer> shared = ops().AllocateShared(bytes);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(std::string(static_cast<const char*>(shared->data()), bytes), std::string(bytes, '\0'));
  const DeviceArray<int32_t> rows = PutArray<int32_t>({2, 1, 0});
  ops().GatherRows(device_x, rows.data(), {shared->data(), 3, 8, 8, dtype()});
  ASSERT_TRUE(ops().Synchronize().ok());
  std::vector<char> gathered(bytes);
  ops().Download(shared->data(), gathered.data(), bytes);
  ASSERT_TRUE(ops().Synchronize().ok());
  EXPECT_EQ(std::memcmp(gathered.data(), shared->data(), bytes), 0);
  const std::vector<char> zeros(bytes);
  EXPECT_NE(std::memcmp(gathered.data(), zeros.data(), bytes), 0);
}

TEST_P(MemoryTest, AwaitReturnsWhenTheWordIsThere) {
  const DeviceBuffer shared = std::move(ops().AllocateShared(2 * sizeof(uint32_t))).value();
  const DeviceArray<uint32_t> five = PutArray<uint32_t>({5, 5});
  const DeviceArray<int32_t> first = PutArray<int32_t>({0});
  // Two words as a row of floats: copied, not computed with.
  ops().GatherRows({five.data(), 1, 2, 2, DType::kF32}, first.data(), {shared.data(), 1, 2, 2, DType::kF32});
  const uint32_t* const word = static_cast<const uint32_t*>(shared.data());
  EXPECT_TRUE(ops().Await(word, 5, /*milliseconds=*/10000).ok());
  EXPECT_EQ(*word, 5u);
}

TEST_P(MemoryTest, AwaitEndsWithTheWork) {
  const DeviceBuffer shared = std::move(ops().AllocateShared(sizeof(uint32_t))).value();
  EXPECT_TRUE(ops().Await(static_cast<const uint32_t*>(shared.data()), 1, /*milliseconds=*/1 << 30).ok());
}

INSTANTIATE_OPS_TEST(MemoryTest);

}  // namespace
}  // namespace quicksilver
