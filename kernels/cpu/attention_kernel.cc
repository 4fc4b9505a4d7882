#include "kernels/cpu/attention_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/simd.h"
#include "kernels/host_float.h"

namespace quicksilver {
namespace {

using simd::Floats;
using simd::kLanes;

constexpr int64_t kTileKeys = 2 * kLanes;
constexpr int64_t kTaskQueries = 32;      // Rows times query heads that share a laid-out tile; more for many heads.
constexpr int kQueriesAtOnce = 4;         // They share each load of a key or value.
constexpr int64_t kSharedWork = 1 << 20;  // Multiplications below which waking other threads costs more.
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

int64_t RoundUp(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

/// One task's numbers in a thread's scratch memory. A query is a row and a head, heads of a row side by side.
struct TaskState {
  int64_t head_size = 0;
  int64_t padded = 0;        // head_size rounded up to whole vectors; the rest of `values` is 0.
  float* keys = nullptr;     // [head_size, kTileKeys]: transposed, so that a vector holds one feature of kLanes keys.
  float* values = nullptr;   // [kTileKeys, padded]
  float* queries = nullptr;  // [queries, head_size]
  float* sums = nullptr;     // [queries, padded]: of e^(score - largest) * value
  float* largest = nullptr;  // [queries]: score so far
  float* totals = nullptr;   // [queries]: of e^(score - largest)
};

size_t ScratchFloats(int64_t queries, int64_t head_size) {
  const int64_t padded = RoundUp(head_size, kLanes);
  return static_cast<size_t>(kTileKeys * (head_size + padded) + RoundUp(queries, kLanes) * (head_size + padded + 2));
}

TaskState Carve(float* scratch, int64_t queries, int64_t head_size) {
  TaskState state{.head_size = head_size, .padded = RoundUp(head_size, kLanes), .keys = scratch};
  state.values = state.keys + kTileKeys * head_size;
  state.queries = state.values + kTileKeys * state.padded;
  state.sums = state.queries + RoundUp(queries, kLanes) * head_size;
  state.largest = state.sums + RoundUp(queries, kLanes) * state.padded;
  state.totals = state.largest + RoundUp(queries, kLanes);
  std::fill_n(state.values, kTileKeys * state.padded, 0.0f);
  std::fill_n(state.sums, queries * state.padded, 0.0f);
  std::fill_n(state.largest, queries, kMinusInfinity);
  std::fill_n(state.totals, queries, 0.0f);
  return state;
}

using Quad = float __attribute__((vector_size(16)));

QS_INLINE Quad LoadQuad(const float* p) {
  Quad v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

QS_INLINE Quad LoadQuad(const uint16_t* p) {
  using QuadWords = uint32_t __attribute__((vector_size(16)));
  const QuadWords v = {p[0], p[1], p[2], p[3]};
  return reinterpret_cast<Quad>(v << 16);
}

QS_INLINE void StoreQuad(float* p, Quad v) { __builtin_memcpy(p, &v, sizeof v); }

QS_INLINE float ToFloat(float value) { return value; }
QS_INLINE float ToFloat(uint16_t value) { return Bf16ToFloat(value); }

/// to[d * kTileKeys + j] = rows[j][d].
template <typename T>
QS_INLINE void Transpose(const T* const* rows, int64_t head_size, float* to) {
  const int64_t whole = head_size / 4 * 4;
  for (int64_t j = 0; j < kTileKeys; j += 4) {
    for (int64_t d = 0; d < whole; d += 4) {
      const Quad a = LoadQuad(rows[j] + d), b = LoadQuad(rows[j + 1] + d);
      const Quad c = LoadQuad(rows[j + 2] + d), e = LoadQuad(rows[j + 3] + d);
      const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Quad ce0 = __builtin_shufflevector(c, e, 0, 4, 1, 5), ce2 = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      float* at = to + d * kTileKeys + j;
      StoreQuad(at, __builtin_shufflevector(ab0, ce0, 0, 1, 4, 5));
      StoreQuad(at + kTileKeys, __builtin_shufflevector(ab0, ce0, 2, 3, 6, 7));
      StoreQuad(at + 2 * kTileKeys, __builtin_shufflevector(ab2, ce2, 0, 1, 4, 5));
      StoreQuad(at + 3 * kTileKeys, __builtin_shufflevector(ab2, ce2, 2, 3, 6, 7));
    }
    for (int64_t d = whole; d < head_size; ++d) {
      for (int64_t i = 0; i < 4; ++i) to[d * kTileKeys + j + i] = ToFloat(rows[j + i][d]);
    }
  }
}

template <typename T>
QS_INLINE void Widen(const T* from, int64_t count, float* to) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) simd::Store(to + c, simd::Load(from + c));
  for (; c < count; ++c) to[c] = ToFloat(from[c]);
}

template <typename T>
QS_INLINE void Narrow(const float* from, float factor, int64_t count, T* to) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) simd::Store(to + c, simd::Load(from + c) * factor);
  if (c < count) simd::StoreFirst(to + c, simd::LoadFirst(from + c, count - c) * factor, count - c);
}

/// Lays out the keys and values at positions [first, first + count) of the task's key head.
template <typename T>
QS_INLINE void GatherTile(const AttentionCall& call, const PagedAttention::Task& task, int64_t first, int64_t count,
                          const TaskState& state) {
  const int32_t* pages = call.layout.page_table + task.segment->first_page;
  const int32_t page_size = call.layout.page_size;
  int32_t page = static_cast<int32_t>(first) / page_size, offset = static_cast<int32_t>(first) % page_size;
  const T* key_rows[kTileKeys];
  for (int64_t j = 0; j < count; ++j) {
    const int64_t slot = int64_t{pages[page]} * page_size + offset;
    const int64_t col = task.kv_head * state.head_size;
    key_rows[j] = static_cast<const T*>(call.cache.keys.data) + slot * call.cache.keys.stride + col;
    const T* value_row = static_cast<const T*>(call.cache.values.data) + slot * call.cache.values.stride + col;
    Widen(value_row, state.head_size, state.values + j * state.padded);
    if (++offset == page_size) ++page, offset = 0;
  }
  for (int64_t j = count; j < kTileKeys; ++j) key_rows[j] = key_rows[0];  // Any key: nobody sees these.
  Transpose(key_rows, state.head_size, state.keys);
}

/// scores[r] = the dot products of query i + r with all keys of the tile.
template <int R>
QS_INLINE void ScoreTile(const TaskState& state, int64_t i, Floats (*scores)[2]) {
  const float* queries = state.queries + i * state.head_size;
  for (int r = 0; r < R; ++r) scores[r][0] = scores[r][1] = Floats{};
  for (int64_t d = 0; d < state.head_size; ++d) {
    const Floats low = simd::Load(state.keys + d * kTileKeys), high = simd::Load(state.keys + d * kTileKeys + kLanes);
    for (int r = 0; r < R; ++r) {
      scores[r][0] += queries[r * state.head_size + d] * low;
      scores[r][1] += queries[r * state.head_size + d] * high;
    }
  }
}

/// sums[r] = sums[r] * rescales[r] + the weighted values, for V vectors from column c on.
template <int R, int V>
QS_INLINE void AddValues(const TaskState& state, int64_t i, int64_t count, int64_t c, const float (*weights)[kTileKeys],
                         const Floats& rescales) {
  float* const at = state.sums + i * state.padded + c;
  Floats sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sums[r][v] = simd::Load(at + r * state.padded + v * kLanes) * rescales[r];
  }
  for (int64_t j = 0; j < count; ++j) {
    Floats values[V];
    for (int v = 0; v < V; ++v) values[v] = simd::Load(state.values + j * state.padded + c + v * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sums[r][v] += weights[r][j] * values[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) simd::Store(at + r * state.padded + v * kLanes, sums[r][v]);
  }
}

/// Adds the first `count` keys of the tile to queries [i, i + R), which all see exactly those of it.
template <int R>
QS_INLINE void AttendTile(const TaskState& state, int64_t i, int64_t count, float scale) {
  Floats scores[R][2];
  ScoreTile<R>(state, i, scores);
  const simd::Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats hidden = simd::Splat(kMinusInfinity);
  const int32_t visible = static_cast<int32_t>(count);
  float weights[R][kTileKeys];
  Floats falls = {};  // By how much the largest score so far is below the new one, a query a lane.
  float totals[R];
  for (int r = 0; r < R; ++r) {
    const Floats low = lane < visible ? scores[r][0] * scale : hidden;
    const Floats high = lane + kLanes < visible ? scores[r][1] * scale : hidden;
    const float before = state.largest[i + r];
    const float largest = std::max(before, simd::Largest(simd::Max(low, high)));
    const Floats weight_low = simd::Exp(low - largest), weight_high = simd::Exp(high - largest);
    falls[r] = before - largest;
    state.largest[i + r] = largest;
    totals[r] = simd::Sum(weight_low + weight_high);
    simd::Store(weights[r], weight_low);
    simd::Store(weights[r] + kLanes, weight_high);
  }
  const Floats rescales = simd::Exp(falls);
  for (int r = 0; r < R; ++r) state.totals[i + r] = state.totals[i + r] * rescales[r] + totals[r];
  int64_t c = 0;
  for (; c + 2 * kLanes <= state.padded; c += 2 * kLanes) AddValues<R, 2>(state, i, count, c, weights, rescales);
  if (c < state.padded) AddValues<R, 1>(state, i, count, c, weights, rescales);
}

/// How many keys, from position 0 on, a row of the segment sees.
int64_t VisibleKeys(const StepLayout& layout, const AttentionSegment& segment, int64_t row) {
  if (layout.block_length == kBidirectional) return segment.keys;
  const int64_t position = segment.first_position + row;
  return std::min<int64_t>(segment.keys, (position / layout.block_length + 1) * layout.block_length);
}

/// Adds one tile to every query of the task that sees any of it.
QS_INLINE void AttendQueries(const AttentionCall& call, const PagedAttention::Task& task, int64_t tile_first,
                             float scale, const TaskState& state) {
  const int64_t group = call.heads / call.kv_heads;
  for (int64_t row = 0; row < task.rows;) {
    // Rows of one block see the same keys, so their queries can be taken together.
    const int64_t visible = VisibleKeys(call.layout, *task.segment, task.first_row + row);
    int64_t end = row + 1;
    while (end < task.rows && VisibleKeys(call.layout, *task.segment, task.first_row + end) == visible) ++end;
    const int64_t count = std::min(kTileKeys, visible - tile_first);
    if (count > 0) {
      int64_t i = row * group;
      for (; i + kQueriesAtOnce <= end * group; i += kQueriesAtOnce) {
        AttendTile<kQueriesAtOnce>(state, i, count, scale);
      }
      for (; i < end * group; ++i) AttendTile<1>(state, i, count, scale);
    }
    row = end;
  }
}

template <typename T>
QS_INLINE void Attend(const AttentionCall& call, const PagedAttention::Task& task, float* scratch) {
  const int64_t group = call.heads / call.kv_heads, head_size = call.q.cols / call.heads;
  const TaskState state = Carve(scratch, task.rows * group, head_size);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_size));
  const int64_t first_row = task.segment->first_row + task.first_row, first_col = task.kv_head * group * head_size;
  for (int64_t r = 0; r < task.rows; ++r) {
    const T* from = static_cast<const T*>(call.q.data) + (first_row + r) * call.q.stride + first_col;
    Widen(from, group * head_size, state.queries + r * group * head_size);
  }
  const int64_t keys = VisibleKeys(call.layout, *task.segment, task.first_row + task.rows - 1);
  for (int64_t first = 0; first < keys; first += kTileKeys) {
    GatherTile<T>(call, task, first, std::min(kTileKeys, keys - first), state);
    AttendQueries(call, task, first, scale, state);
  }
  for (int64_t r = 0; r < task.rows; ++r) {
    T* to = static_cast<T*>(call.out.data) + (first_row + r) * call.out.stride + first_col;
    for (int64_t g = 0; g < group; ++g) {
      const int64_t i = r * group + g;
      Narrow(state.sums + i * state.padded, 1.0f / state.totals[i], head_size, to + g * head_size);
    }
  }
}

QS_MULTIVERSIONED void AttendTask(const AttentionCall& call, const PagedAttention::Task& task, float* scratch) {
  if (call.q.dtype == DType::kF32) {
    Attend<float>(call, task, scratch);
  } else {
    Attend<uint16_t>(call, task, scratch);
  }
}

}  // namespace

void PagedAttention::Run(const AttentionCall& call) {
  const int64_t group = call.heads / call.kv_heads, head_size = call.q.cols / call.heads;
  const int64_t task_rows = std::max<int64_t>(1, kTaskQueries / group);
  int64_t work = 0;
  tasks_.clear();
  for (int32_t s = 0; s < call.layout.segments_count; ++s) {
    const AttentionSegment& segment = call.layout.segments[s];
    work += int64_t{segment.rows} * segment.keys * call.q.cols * 2;
    for (int64_t row = 0; row < segment.rows; row += task_rows) {
      const int64_t rows = std::min<int64_t>(task_rows, segment.rows - row);
      for (int64_t kv_head = 0; kv_head < call.kv_heads; ++kv_head) {
        tasks_.push_back({.segment = &segment, .first_row = row, .rows = rows, .kv_head = kv_head});
      }
    }
  }
  const size_t floats = ScratchFloats(task_rows * group, head_size);
  team_.Run(static_cast<int64_t>(tasks_.size()), work >= kSharedWork,
            [&](int64_t item, int32_t thread) { AttendTask(call, tasks_[item], scratch_[thread].Get(floats)); });
}

}  // namespace quicksilver
