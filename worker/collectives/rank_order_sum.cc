#include "worker/collectives/rank_order_sum.h"

#include <algorithm>

#include "kernels/host_float.h"

namespace quicksilver {
namespace {

// A tile of float sums that stays in the first-level cache.
constexpr int64_t kTile = 2048;

}  // namespace

void SumInRankOrder(const void* const* parts, int parts_count, int64_t elements, DType dtype, void* out) {
  float sum[kTile];
  for (int64_t first = 0; first < elements; first += kTile) {
    const int64_t count = std::min(kTile, elements - first);
    for (int part = 0; part < parts_count; ++part) {
      if (dtype == DType::kF32) {
        const float* x = static_cast<const float*>(parts[part]) + first;
        if (part == 0) {
          std::copy(x, x + count, sum);
        } else {
          for (int64_t i = 0; i < count; ++i) sum[i] += x[i];
        }
      } else {
        const uint16_t* x = static_cast<const uint16_t*>(parts[part]) + first;
        if (part == 0) {
          for (int64_t i = 0; i < count; ++i) sum[i] = Bf16ToFloat(x[i]);
        } else {
          for (int64_t i = 0; i < count; ++i) sum[i] += Bf16ToFloat(x[i]);
        }
      }
    }
    if (dtype == DType::kF32) {
      std::copy(sum, sum + count, static_cast<float*>(out) + first);
    } else {
      uint16_t* y = static_cast<uint16_t*>(out) + first;
      for (int64_t i = 0; i < count; ++i) y[i] = FloatToBf16(sum[i]);
    }
  }
}

}  // namespace quicksilver
