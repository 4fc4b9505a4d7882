#include <cuda_bf16.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/ptx.h"
#include "tests/cuda_twin/kernel_support.h"

namespace quicksilver {
namespace {

using testing::ElementsAreArray;

// The layouts as the PTX manual draws them for mma.m16n8k16: element i of a lane's fragment stands at (row, column).
struct Place {
  int row;
  int column;
};

Place PlaceOfA(int lane, int i) {
  const int row = lane / 4 + ((i < 2 || (i >= 4 && i < 6)) ? 0 : 8);
  const int column = (lane % 4) * 2 + (i & 1) + (i < 4 ? 0 : 8);
  return {row, column};
}

Place PlaceOfB(int lane, int i) { return {(lane % 4) * 2 + (i & 1) + (i < 2 ? 0 : 8), lane / 4}; }

Place PlaceOfD(int lane, int i) { return {lane / 4 + (i < 2 ? 0 : 8), (lane % 4) * 2 + (i & 1)}; }

__global__ void MmaKernel(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  uint32_t a_part[4];
  uint32_t b_part[2];
  float d_part[4];
  for (int i = 0; i < 4; ++i) a_part[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b_part[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) d_part[i] = d[lane * 4 + i];
  MmaBf16(d_part, a_part, b_part);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = d_part[i];
}

uint16_t Bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

TEST(WarpOperationsTest, MmaIsTheMatrixProductInTheDocumentedLayout) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> values(-20, 20);
  float a[16][16];
  float b[16][8];
  float d[16][8];
  for (auto& row : a) {
    for (float& v : row) v = static_cast<float>(values(random));
  }
  for (auto& row : b) {
    for (float& v : row) v = static_cast<float>(values(random));
  }
  for (auto& row : d) {
    for (float& v : row) v = static_cast<float>(values(random));
  }
  std::vector<uint32_t> a_parts(32 * 4);
  std::vector<uint32_t> b_parts(32 * 2);
  std::vector<float> d_parts(32 * 4);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const Place p = PlaceOfA(lane, i);
      a_parts[lane * 4 + i / 2] |= uint32_t{Bits(a[p.row][p.column])} << (16 * (i % 2));
    }
    for (int i = 0; i < 4; ++i) {
      const Place p = PlaceOfB(lane, i);
      b_parts[lane * 2 + i / 2] |= uint32_t{Bits(b[p.row][p.column])} << (16 * (i % 2));
      d_parts[lane * 4 + i] = d[PlaceOfD(lane, i).row][PlaceOfD(lane, i).column];
    }
  }
  const DeviceArray<uint32_t> device_a(a_parts);
  const DeviceArray<uint32_t> device_b(b_parts);
  const DeviceArray<float> device_d(d_parts);
  ASSERT_EQ(Launch(MmaKernel, 1, 32, 0, device_a.data(), device_b.data(), device_d.data()), cudaSuccess);
  const std::vector<float> result = device_d.Values();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Place p = PlaceOfD(lane, i);
      float expected = d[p.row][p.column];  // Small integers: exact in any order.
      for (int k = 0; k < 16; ++k) expected += a[p.row][k] * b[k][p.column];
      EXPECT_EQ(result[lane * 4 + i], expected) << "lane " << lane << " element " << i;
    }
  }
}

__global__ void LoadMatrixKernel(const uint4* rows, bool transposed, uint32_t* out) {
  auto* shared = reinterpret_cast<uint4*>(SharedMemory());
  const int lane = threadIdx.x;
  shared[lane] = rows[lane];
  __syncwarp();
  uint32_t r[4];
  if (transposed) {
    LoadMatrix4Transposed(r, shared + lane);
  } else {
    LoadMatrix4(r, shared + lane);
  }
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
}

TEST(WarpOperationsTest, LoadMatrixGivesEachLaneItsPairs) {
  std::vector<uint16_t> elements(4 * 8 * 8);  // [matrix][row][column]
  for (size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<uint16_t>(i * 7 + 3);
  std::vector<uint4> rows(32);
  std::memcpy(rows.data(), elements.data(), elements.size() * 2);
  const DeviceArray<uint4> device_rows(rows);
  for (const bool transposed : {false, true}) {
    const DeviceArray<uint32_t> out(32 * 4);
    ASSERT_EQ(Launch(LoadMatrixKernel, 1, 32, 512, device_rows.data(), transposed, out.data()), cudaSuccess);
    const std::vector<uint32_t> result = out.Values();
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        for (int half = 0; half < 2; ++half) {
          const int row = transposed ? 2 * (lane % 4) + half : lane / 4;
          const int column = transposed ? lane / 4 : 2 * (lane % 4) + half;
          const uint16_t found = static_cast<uint16_t>(result[lane * 4 + m] >> (16 * half));
          EXPECT_EQ(found, elements[m * 64 + row * 8 + column]) << "lane " << lane << " matrix " << m;
        }
      }
    }
  }
}

__global__ void ShuffleKernel(float* out) {
  const int lane = threadIdx.x;
  const float value = 100.0f + static_cast<float>(lane);
  out[lane] = __shfl_xor_sync(0xFFFFFFFFu, value, 5);
  out[32 + lane] = __shfl_down_sync(0xFFFFFFFFu, value, 4);
  out[64 + lane] = __shfl_up_sync(0xFFFFFFFFu, value, 4, 8);
  out[96 + lane] = __shfl_sync(0xFFFFFFFFu, value, lane / 2);
  out[128 + lane] = __shfl_sync(0xFFFFFFFFu, value, 3, 8);
}

TEST(WarpOperationsTest, ShufflesReadTheLaneThatTheyName) {
  const DeviceArray<float> out(160);
  ASSERT_EQ(Launch(ShuffleKernel, 1, 32, 0, out.data()), cudaSuccess);
  const std::vector<float> result = out.Values();
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(result[lane], 100 + (lane ^ 5));
    EXPECT_EQ(result[32 + lane], 100 + (lane + 4 < 32 ? lane + 4 : lane));
    EXPECT_EQ(result[64 + lane], 100 + (lane % 8 >= 4 ? lane - 4 : lane));
    EXPECT_EQ(result[96 + lane], 100 + lane / 2);
    EXPECT_EQ(result[128 + lane], 100 + lane / 8 * 8 + 3);
  }
}

__global__ void VoteKernel(unsigned* out) {
  const int lane = threadIdx.x;
  const unsigned odd = __ballot_sync(0xFFFFFFFFu, lane % 2);
  const int any = __any_sync(0xFFFFFFFFu, lane == 31);
  const int all = __all_sync(0xFFFFFFFFu, lane < 31);
  if (lane == 7) {
    out[0] = odd;
    out[1] = static_cast<unsigned>(any);
    out[2] = static_cast<unsigned>(all);
  }
}

TEST(WarpOperationsTest, VotesCountEveryLane) {
  const DeviceArray<unsigned> out(3);
  ASSERT_EQ(Launch(VoteKernel, 1, 32, 0, out.data()), cudaSuccess);
  EXPECT_THAT(out.Values(), ElementsAreArray({0xAAAAAAAAu, 1u, 0u}));
}

}  // namespace
}  // namespace quicksilver
