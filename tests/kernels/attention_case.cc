#include "tests/kernels/attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace quicksilver {
namespace {

/// Whether row r of the sequence sees key j, in the words of the specification.
bool Sees(const AttentionShape& shape, const TestSequence& s, int64_t r, int64_t j) {
  const int32_t block = shape.BlockOf(s), window = shape.rule.window;
  const int64_t position = s.first_position + r;
  if (block != kBidirectional && j / block > position / block) return false;
  if (s.unseen_key >= 0 && j - s.unseen_key == r) return false;
  if (window == 0) return true;
  return (block == kBidirectional ? s.first_position : position) - j <= window - 1;
}

/// The arrays behind a StepLayout, and the cache before the step.
struct PagedStep {
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> positions, slots, page_table;
  HostMatrix q;             // Rows of the step.
  HostMatrix keys, values;  // The cache, this step's rows written.
  int32_t rows_max = 0, keys_max = 0;
};

void CopyRow(const HostMatrix& from, int64_t from_row, HostMatrix* to, int64_t to_row) {
  for (int64_t c = 0; c < from.cols; ++c) to->at(to_row, c) = from.at(from_row, c);
}

PagedStep LayOut(const AttentionShape& shape, const std::vector<TestSequence>& sequences, uint32_t page_seed) {
  int64_t pages = 1, rows = 0;  // One page belongs to nobody.
  for (const TestSequence& s : sequences) {
    pages += (s.keys.rows + shape.page_size - 1) / shape.page_size;
    rows += s.queries.rows;
  }
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(page_seed));

  const int64_t kv_cols = int64_t{shape.kv_heads} * shape.head_size;
  PagedStep step;
  step.q = HostMatrix(rows, int64_t{shape.heads} * shape.head_size);
  step.keys = HostMatrix(pages * shape.page_size, kv_cols);
  std::fill(step.keys.values.begin(), step.keys.values.end(), std::numeric_limits<float>::quiet_NaN());
  step.values = step.keys;
  for (const TestSequence& s : sequences) {
    const int32_t s_rows = static_cast<int32_t>(s.queries.rows), keys = static_cast<int32_t>(s.keys.rows);
    step.segments.push_back({.first_row = static_cast<int32_t>(step.positions.size()),
                             .rows = s_rows,
                             .first_position = s.first_position,
                             .keys = keys,
                             .first_page = static_cast<int32_t>(step.page_table.size()),
                             .block_length = shape.BlockOf(s),
                             .unseen_key = s.unseen_key});
    step.rows_max = std::max(step.rows_max, s_rows);
    step.keys_max = std::max(step.keys_max, keys);
    for (int32_t j = 0; j < keys; ++j) {
      if (j % shape.page_size == 0) step.page_table.push_back(order[step.page_table.size()]);
      const int32_t slot = step.page_table.back() * shape.page_size + j % shape.page_size;
      CopyRow(s.keys, j, &step.keys, slot);
      CopyRow(s.values, j, &step.values, slot);
      const int32_t row = j - s.first_position;
      if (row < 0 || row >= s_rows) continue;
      CopyRow(s.queries, row, &step.q, static_cast<int64_t>(step.positions.size()));
      step.positions.push_back(j);
      step.slots.push_back(slot);
    }
  }
  return step;
}

}  // namespace

TestSequence RandomSequence(const AttentionShape& shape, int32_t rows, int32_t first_position, int32_t keys,
                            uint32_t seed) {
  const int64_t kv_cols = int64_t{shape.kv_heads} * shape.head_size;
  return {first_position, RandomMatrix(rows, int64_t{shape.heads} * shape.head_size, seed, 1.5f),
          RandomMatrix(keys, kv_cols, seed + 1000), RandomMatrix(keys, kv_cols, seed + 2000)};
}

HostMatrix RunAttention(OpsTestBase& test, const AttentionShape& shape, const std::vector<TestSequence>& sequences,
                        uint32_t page_seed) {
  const PagedStep step = LayOut(shape, sequences, page_seed);
  const DeviceMatrix q = test.Put(step.q);
  const DeviceMatrix keys = test.Put(step.keys, test.dtype(), /*gap=*/0);
  const DeviceMatrix values = test.Put(step.values, test.dtype(), /*gap=*/0);
  const DeviceMatrix out = test.Space(step.q.rows, step.q.cols);
  const DeviceArray<int32_t> positions = test.PutArray(step.positions), slots = test.PutArray(step.slots);
  const DeviceArray<int32_t> page_table = test.PutArray(step.page_table);
  const DeviceArray<AttentionSegment> segments = test.PutArray(step.segments);
  const StepLayout layout = {.rows = static_cast<int32_t>(step.q.rows),
                             .positions = positions.data(),
                             .slots = slots.data(),
                             .segments = segments.data(),
                             .segments_count = static_cast<int32_t>(step.segments.size()),
                             .page_table = page_table.data(),
                             .page_size = shape.page_size,
                             .rows_max = step.rows_max,
                             .keys_max = step.keys_max};
  test.ops().BeginStep(layout);
  test.ops().Attention(layout, q, shape.heads, shape.kv_heads, shape.rule, {keys, values}, out);
  return test.Get(out);
}

HostMatrix NaiveAttention(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype) {
  const int32_t hd = shape.head_size;
  const double scale = shape.rule.scale != 0.0f ? shape.rule.scale : 1.0 / std::sqrt(static_cast<double>(hd));
  HostMatrix out(0, int64_t{shape.heads} * hd);
  for (const TestSequence& s : sequences) {
    const HostMatrix q = Rounded(s.queries, dtype), k = Rounded(s.keys, dtype), v = Rounded(s.values, dtype);
    for (int64_t r = 0; r < q.rows; ++r) {
      for (int32_t head = 0; head < shape.heads; ++head) {
        const int32_t kv_first = head * shape.kv_heads / shape.heads * hd;
        std::vector<double> sums(static_cast<size_t>(hd));
        double total = 0.0;
        for (int64_t j = 0; j < k.rows; ++j) {
          if (!Sees(shape, s, r, j)) continue;
          double dot = 0.0;
          for (int32_t d = 0; d < hd; ++d) dot += double{q.at(r, head * hd + d)} * k.at(j, kv_first + d);
          const double weight = std::exp(dot * scale);
          total += weight;
          for (int32_t d = 0; d < hd; ++d) sums[d] += weight * v.at(j, kv_first + d);
        }
        for (const double sum : sums) out.values.push_back(static_cast<float>(sum / total));
      }
      ++out.rows;
    }
  }
  return out;
}

}  // namespace quicksilver
