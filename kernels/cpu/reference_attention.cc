#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/host_matrix.h"
#include "kernels/cpu/reference_ops.h"

namespace quicksilver {
namespace {

/// Where the key of `position` lies in the cache.
int64_t SlotOf(const StepLayout& layout, const AttentionSegment& segment, int64_t position) {
  const int64_t page = layout.page_table[segment.first_page + position / layout.page_size];
  return page * layout.page_size + position % layout.page_size;
}

/// How many keys, from position 0 on, a query at `position` sees.
int64_t VisibleKeys(const AttentionSegment& segment, int64_t position) {
  if (segment.block_length == kBidirectional) return segment.keys;
  const int64_t block_end = (position / segment.block_length + 1) * segment.block_length;
  return std::min<int64_t>(segment.keys, block_end);
}

}  // namespace

void ReferenceOps::WriteKv(const StepLayout& layout, ConstMatrix k, ConstMatrix v, const KvLayer& cache) {
  CHECK(k.rows == layout.rows && v.rows == layout.rows && k.cols == cache.keys.cols && v.cols == cache.values.cols);
  for (int64_t n = 0; n < k.rows; ++n) {
    const int64_t slot = layout.slots[n];
    if (slot < 0) continue;
    CHECK(slot < cache.keys.rows);
    for (int64_t c = 0; c < k.cols; ++c) {
      Store(cache.keys, slot, c, Load(k, n, c));
      Store(cache.values, slot, c, Load(v, n, c));
    }
  }
}

void ReferenceOps::Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads,
                             const AttentionRule& rule, const KvLayer& cache, Matrix out) {
  CHECK(heads % kv_heads == 0 && q.cols % heads == 0 && q.rows == layout.rows);
  const int64_t head_size = q.cols / heads;
  const float scale = rule.scale != 0.0f ? rule.scale : 1.0f / std::sqrt(static_cast<float>(head_size));
  std::vector<float> weights, sums(static_cast<size_t>(head_size));
  for (int32_t s = 0; s < layout.segments_count; ++s) {
    const AttentionSegment& segment = layout.segments[s];
    for (int64_t r = 0; r < segment.rows; ++r) {
      const int64_t n = segment.first_row + r;
      const int64_t keys = VisibleKeys(segment, segment.first_position + r);
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t q_first = head * head_size, kv_first = head * kv_heads / heads * head_size;
        weights.assign(static_cast<size_t>(keys), 0.0f);
        for (int64_t j = 0; j < keys; ++j) {
          const int64_t slot = SlotOf(layout, segment, j);
          float dot = 0.0f;
          for (int64_t d = 0; d < head_size; ++d) dot += Load(q, n, q_first + d) * Load(cache.keys, slot, kv_first + d);
          weights[j] = dot * scale;
        }
        const float largest = *std::max_element(weights.begin(), weights.end());
        float total = 0.0f;
        for (float& weight : weights) {
          weight = std::exp(weight - largest);
          total += weight;
        }
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t j = 0; j < keys; ++j) {
          const int64_t slot = SlotOf(layout, segment, j);
          for (int64_t d = 0; d < head_size; ++d) sums[d] += weights[j] * Load(cache.values, slot, kv_first + d);
        }
        for (int64_t d = 0; d < head_size; ++d) Store(out, n, q_first + d, sums[d] / total);
      }
    }
  }
}

}  // namespace quicksilver
