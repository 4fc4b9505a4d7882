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

/// Whether row r of the segment sees the key at position j.
bool Sees(const AttentionSegment& segment, const AttentionRule& rule, int64_t r, int64_t j) {
  const bool bidirectional = segment.block_length == kBidirectional;
  const int64_t position = segment.first_position + r;
  if (!bidirectional && j / segment.block_length > position / segment.block_length) return false;
  if (segment.unseen_key >= 0 && j == segment.unseen_key + r) return false;
  return rule.window == 0 || j > (bidirectional ? segment.first_position : position) - rule.window;
}

/// A head of one row, and the columns of its keys and values.
struct HeadRow {
  int64_t row = 0;
  int64_t q_col = 0;
  int64_t kv_col = 0;
  int64_t head_size = 0;
};

/// Softmax attention over the keys in `slots`.
void AttendOver(const std::vector<int64_t>& slots, float scale, const HeadRow& at, ConstMatrix q, const KvLayer& cache,
                Matrix out) {
  std::vector<float> weights, sums(static_cast<size_t>(at.head_size), 0.0f);
  for (const int64_t slot : slots) {
    float dot = 0.0f;
    for (int64_t d = 0; d < at.head_size; ++d)
      dot += Load(q, at.row, at.q_col + d) * Load(cache.keys, slot, at.kv_col + d);
    weights.push_back(dot * scale);
  }
  const float largest = *std::max_element(weights.begin(), weights.end());
  float total = 0.0f;
  for (float& weight : weights) {
    weight = std::exp(weight - largest);
    total += weight;
  }
  for (size_t i = 0; i < slots.size(); ++i) {
    for (size_t d = 0; d < sums.size(); ++d) {
      sums[d] += weights[i] * Load(cache.values, slots[i], at.kv_col + static_cast<int64_t>(d));
    }
  }
  for (size_t d = 0; d < sums.size(); ++d) Store(out, at.row, at.q_col + static_cast<int64_t>(d), sums[d] / total);
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
  std::vector<int64_t> slots;
  for (int32_t s = 0; s < layout.segments_count; ++s) {
    const AttentionSegment& segment = layout.segments[s];
    for (int64_t r = 0; r < segment.rows; ++r) {
      slots.clear();
      for (int64_t j = 0; j < segment.keys; ++j) {
        if (Sees(segment, rule, r, j)) slots.push_back(SlotOf(layout, segment, j));
      }
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t kv_col = head * kv_heads / heads * head_size;
        AttendOver(slots, scale, {segment.first_row + r, head * head_size, kv_col, head_size}, q, cache, out);
      }
    }
  }
}

}  // namespace quicksilver
