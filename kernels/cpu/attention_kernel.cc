#include "kernels/cpu/attention_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/cpu/simd.h"
#include "kernels/host_float.h"

namespace quicksilver {
namespace {

using simd::Floats;
using simd::Ints;
using simd::kLanes;

constexpr int64_t kTileKeys = 32;
constexpr int64_t kTaskQueries = 2 * kLanes;  // They share each load of a key or value.
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

int64_t RoundUp(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

/// One task's numbers in a thread's scratch memory. Queries are lanes.
struct TaskState {
  int64_t head_size = 0;
  int64_t padded = 0;        // head_size rounded up to 4.
  float* queries = nullptr;  // [padded, kTaskQueries]
  float* sums = nullptr;     // [padded, kTaskQueries]: of e^(score - largest) * value
  float* weights = nullptr;  // [kTileKeys, kTaskQueries]: scores, then e^(score - largest)
  float* largest = nullptr;  // [kTaskQueries]: score so far
  float* totals = nullptr;   // [kTaskQueries]: of e^(score - largest)
  float* rows = nullptr;     // [max(kTaskQueries, 2 kTileKeys), padded]: queries or keys and values as floats, by row.
  // Each query sees the keys in [first, visible) but `unseen`.
  int32_t first[kTaskQueries];
  int32_t visible[kTaskQueries];
  int32_t unseen[kTaskQueries];  // -1: none.
  const float* keys[kTileKeys];  // Of the tile; past the tile's end any key.
  const float* values[kTileKeys];
};

size_t ScratchFloats(int64_t head_size) {
  const int64_t padded = RoundUp(head_size, 4);
  return static_cast<size_t>(kTaskQueries * (2 * padded + kTileKeys + 2) +
                             padded * std::max(kTaskQueries, 2 * kTileKeys));
}

TaskState Carve(float* scratch, int64_t head_size) {
  TaskState state;
  state.head_size = head_size;
  state.padded = RoundUp(head_size, 4);
  state.queries = scratch;
  state.sums = state.queries + state.padded * kTaskQueries;
  state.weights = state.sums + state.padded * kTaskQueries;
  state.largest = state.weights + kTileKeys * kTaskQueries;
  state.totals = state.largest + kTaskQueries;
  state.rows = state.totals + kTaskQueries;
  std::fill_n(state.sums, state.padded * kTaskQueries, 0.0f);
  std::fill_n(state.largest, kTaskQueries, kMinusInfinity);
  std::fill_n(state.totals, kTaskQueries, 0.0f);
  return state;
}

QS_INLINE float ToFloat(float value) { return value; }
QS_INLINE float ToFloat(uint16_t value) { return Bf16ToFloat(value); }

template <typename T>
QS_INLINE void Widen(const T* from, int64_t count, float* to) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) simd::Store(to + c, simd::Load(from + c));
  for (; c < count; ++c) to[c] = ToFloat(from[c]);
}

template <typename T>
QS_INLINE void Narrow(const float* from, int64_t count, T* to) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) simd::Store(to + c, simd::Load(from + c));
  if (c < count) simd::StoreFirst(to + c, simd::LoadFirst(from + c, count - c), count - c);
}

using Quad = float __attribute__((vector_size(16)));

QS_INLINE Quad LoadQuad(const float* p) {
  Quad v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

QS_INLINE void StoreQuad(float* p, Quad v) { __builtin_memcpy(p, &v, sizeof v); }

/// to [cols, rows] = from [rows, cols] transposed; both are multiples of 4.
QS_INLINE void Transpose(const float* from, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; r += 4) {
    for (int64_t c = 0; c < cols; c += 4) {
      const float* const at = from + r * cols + c;
      const Quad a = LoadQuad(at), b = LoadQuad(at + cols), d = LoadQuad(at + 2 * cols), e = LoadQuad(at + 3 * cols);
      const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Quad de0 = __builtin_shufflevector(d, e, 0, 4, 1, 5), de2 = __builtin_shufflevector(d, e, 2, 6, 3, 7);
      float* const out = to + c * rows + r;
      StoreQuad(out, __builtin_shufflevector(ab0, de0, 0, 1, 4, 5));
      StoreQuad(out + rows, __builtin_shufflevector(ab0, de0, 2, 3, 6, 7));
      StoreQuad(out + 2 * rows, __builtin_shufflevector(ab2, de2, 0, 1, 4, 5));
      StoreQuad(out + 3 * rows, __builtin_shufflevector(ab2, de2, 2, 3, 6, 7));
    }
  }
}

/// Points at the keys and values of positions [first, first + count), as floats.
template <typename T>
QS_INLINE void GatherTile(const AttentionCall& call, const PagedAttention::Task& task, int64_t first, int64_t count,
                          TaskState* state) {
  const int32_t* pages = call.layout.page_table + task.segment->first_page;
  const int32_t page_size = call.layout.page_size;
  const int64_t col = task.kv_head * state->head_size;
  int32_t page = static_cast<int32_t>(first) / page_size, offset = static_cast<int32_t>(first) % page_size;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t slot = int64_t{pages[page]} * page_size + offset;
    const T* key = static_cast<const T*>(call.cache.keys.data) + slot * call.cache.keys.stride + col;
    const T* value = static_cast<const T*>(call.cache.values.data) + slot * call.cache.values.stride + col;
    if constexpr (std::is_same_v<T, float>) {
      state->keys[j] = key;
      state->values[j] = value;
    } else {
      float* const wide = state->rows + 2 * j * state->padded;
      Widen(key, state->head_size, wide);
      Widen(value, state->head_size, wide + state->padded);
      state->keys[j] = wide;
      state->values[j] = wide + state->padded;
    }
    if (++offset == page_size) ++page, offset = 0;
  }
  for (int64_t j = count; j < kTileKeys; ++j) state->keys[j] = state->keys[0];
}

/// weights[j] = query * keys[j] * scale, for V vectors of queries.
template <int V>
QS_INLINE void ScoreTile(const TaskState& state, int64_t count, float scale) {
  constexpr int kKeysAtOnce = 8 / V;
  for (int64_t j = 0; j < count; j += kKeysAtOnce) {
    Floats scores[kKeysAtOnce][V];
    for (int k = 0; k < kKeysAtOnce; ++k) {
      for (int v = 0; v < V; ++v) scores[k][v] = Floats{};
    }
    for (int64_t d = 0; d < state.head_size; ++d) {
      Floats queries[V];
      for (int v = 0; v < V; ++v) queries[v] = simd::Load(state.queries + d * kTaskQueries + v * kLanes);
      for (int k = 0; k < kKeysAtOnce; ++k) {
        for (int v = 0; v < V; ++v) scores[k][v] += state.keys[j + k][d] * queries[v];
      }
    }
    for (int k = 0; k < kKeysAtOnce; ++k) {
      for (int v = 0; v < V; ++v) {
        simd::Store(state.weights + (j + k) * kTaskQueries + v * kLanes, scores[k][v] * scale);
      }
    }
  }
}

/// Which keys of one tile the queries of a vector see; all count from the tile's first.
struct TileMask {
  Ints first, visible, unseen;

  QS_INLINE Ints Sees(int64_t j) const {
    const auto key = static_cast<int32_t>(j);
    return (key >= first) & (key < visible) & (key != unseen);
  }
};

QS_INLINE Ints LoadInts(const int32_t* p) {
  Ints v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

/// Turns scores into weights; returns what older sums must be multiplied by. kRagged: some key is hidden from some
/// query.
template <bool kRagged>
QS_INLINE Floats WeighTile(float* weights, int64_t count, const TileMask& mask, float* largest_so_far, float* totals) {
  const Floats before = simd::Load(largest_so_far);
  Floats largest = before;
  for (int64_t j = 0; j < count; ++j) {
    Floats score = simd::Load(weights + j * kTaskQueries);
    if constexpr (kRagged) {
      score = mask.Sees(j) ? score : simd::Splat(kMinusInfinity);
      simd::Store(weights + j * kTaskQueries, score);
    }
    largest = simd::Max(largest, score);
  }
  // A query that has seen no key yet has -inf, and its scores are all -inf.
  const Floats reference = kRagged ? (largest == simd::Splat(kMinusInfinity) ? Floats{} : largest) : largest;
  const Floats rescale = simd::Exp(before - reference);
  Floats total = simd::Load(totals) * rescale;
  for (int64_t j = 0; j < count; ++j) {
    const Floats weight = simd::Exp(simd::Load(weights + j * kTaskQueries) - reference);
    total += weight;
    simd::Store(weights + j * kTaskQueries, weight);
  }
  simd::Store(largest_so_far, largest);
  simd::Store(totals, total);
  return rescale;
}

/// sums = sums * rescale + the weighted values, for features [d, d + D). A hidden value must not even be multiplied by
/// its weight of 0: it may be NaN.
template <int V, int D, bool kRagged>
QS_INLINE void AddValues(const TaskState& state, int64_t count, int64_t d, const Floats* rescale,
                         const TileMask* masks) {
  Floats sums[D][V];
  for (int i = 0; i < D; ++i) {
    for (int v = 0; v < V; ++v) {
      sums[i][v] = simd::Load(state.sums + (d + i) * kTaskQueries + v * kLanes) * rescale[v];
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    const float* const values = state.values[j] + d;
    Floats weights[V];
    for (int v = 0; v < V; ++v) weights[v] = simd::Load(state.weights + j * kTaskQueries + v * kLanes);
    for (int i = 0; i < D; ++i) {
      for (int v = 0; v < V; ++v) {
        const Floats more = sums[i][v] + weights[v] * values[i];
        sums[i][v] = kRagged ? (masks[v].Sees(j) ? more : sums[i][v]) : more;
      }
    }
  }
  for (int i = 0; i < D; ++i) {
    for (int v = 0; v < V; ++v) simd::Store(state.sums + (d + i) * kTaskQueries + v * kLanes, sums[i][v]);
  }
}

/// Lets every query see the tile's keys at positions [first, first + count) that are not hidden from it.
template <int V, bool kRagged>
QS_INLINE void AttendTile(const TaskState& state, int64_t first, int64_t count, float scale) {
  constexpr int kFeaturesAtOnce = 8 / V;
  ScoreTile<V>(state, count, scale);
  Floats rescale[V];
  TileMask masks[V];
  for (int v = 0; v < V; ++v) {
    const auto start = static_cast<int32_t>(first);
    masks[v].first = LoadInts(state.first + v * kLanes) - start;
    masks[v].visible = LoadInts(state.visible + v * kLanes) - start;
    masks[v].unseen = LoadInts(state.unseen + v * kLanes) - start;
    rescale[v] = WeighTile<kRagged>(state.weights + v * kLanes, count, masks[v], state.largest + v * kLanes,
                                    state.totals + v * kLanes);
  }
  int64_t d = 0;
  for (; d + kFeaturesAtOnce <= state.head_size; d += kFeaturesAtOnce) {
    AddValues<V, kFeaturesAtOnce, kRagged>(state, count, d, rescale, masks);
  }
  for (; d < state.head_size; ++d) AddValues<V, 1, kRagged>(state, count, d, rescale, masks);
}

int32_t VisibleKeys(const AttentionSegment& segment, int64_t row) {
  if (segment.block_length == kBidirectional) return segment.keys;
  const int64_t position = segment.first_position + row;
  return static_cast<int32_t>(
      std::min<int64_t>(segment.keys, (position / segment.block_length + 1) * segment.block_length));
}

/// The first key that the window leaves to a row.
int32_t FirstKey(const AttentionSegment& segment, const AttentionRule& rule, int64_t row) {
  if (rule.window == 0) return 0;
  const int64_t position = segment.first_position + (segment.block_length == kBidirectional ? 0 : row);
  return static_cast<int32_t>(std::max<int64_t>(0, position - (rule.window - 1)));
}

/// What the queries of a task see together.
struct TaskRange {
  int32_t first = 0;      // Of any query.
  int32_t first_all = 0;  // From here on, …
  int32_t end_all = 0;    // … up to here, all queries see every key but the unseen ones.
  int32_t end = 0;        // Of any query.
  int32_t first_unseen = 0, end_unseen = 0;

  /// Whether some query does not see some of the keys [from, to).
  bool IsRagged(int64_t from, int64_t to) const {
    return from < first_all || to > end_all || (from < end_unseen && to > first_unseen);
  }
};

/// Fills the state's masks; lanes of no query see what the last query sees.
TaskRange SetMasks(const AttentionCall& call, const PagedAttention::Task& task, TaskState* state) {
  const AttentionSegment& segment = *task.segment;
  const int64_t group = call.heads / call.kv_heads;
  TaskRange range = {.first = segment.keys, .end_all = segment.keys};
  for (int64_t i = 0; i < kTaskQueries; ++i) {
    const int64_t row = (task.first_query + std::min(i, task.queries - 1)) / group;
    state->first[i] = FirstKey(segment, call.rule, row);
    state->visible[i] = VisibleKeys(segment, row);
    state->unseen[i] = segment.unseen_key < 0 ? -1 : segment.unseen_key + static_cast<int32_t>(row);
    range.first = std::min(range.first, state->first[i]);
    range.first_all = std::max(range.first_all, state->first[i]);
    range.end_all = std::min(range.end_all, state->visible[i]);
    range.end = std::max(range.end, state->visible[i]);
  }
  if (segment.unseen_key < 0) return range;
  range.first_unseen = state->unseen[0];
  range.end_unseen = state->unseen[kTaskQueries - 1] + 1;
  return range;
}

/// A query's elements in q or out.
QS_INLINE int64_t ElementOf(const AttentionCall& call, const PagedAttention::Task& task, int64_t stride, int64_t i) {
  const int64_t group = call.heads / call.kv_heads, query = task.first_query + i;
  const int64_t row = task.segment->first_row + query / group, head = task.kv_head * group + query % group;
  return row * stride + head * (call.q.cols / call.heads);
}

template <typename T>
QS_INLINE void Attend(const AttentionCall& call, const PagedAttention::Task& task, float* scratch) {
  TaskState state = Carve(scratch, call.q.cols / call.heads);
  const TaskRange range = SetMasks(call, task, &state);
  std::fill_n(state.rows, kTaskQueries * state.padded, 0.0f);
  for (int64_t i = 0; i < task.queries; ++i) {
    const T* from = static_cast<const T*>(call.q.data) + ElementOf(call, task, call.q.stride, i);
    Widen(from, state.head_size, state.rows + i * state.padded);
  }
  Transpose(state.rows, kTaskQueries, state.padded, state.queries);

  const float scale =
      call.rule.scale != 0.0f ? call.rule.scale : 1.0f / __builtin_sqrtf(static_cast<float>(state.head_size));
  for (int64_t first = range.first / kTileKeys * kTileKeys; first < range.end; first += kTileKeys) {
    const int64_t count = std::min<int64_t>(kTileKeys, range.end - first);
    GatherTile<T>(call, task, first, count, &state);
    const bool ragged = range.IsRagged(first, first + count);
    if (task.queries <= kLanes) {
      ragged ? AttendTile<1, true>(state, first, count, scale) : AttendTile<1, false>(state, first, count, scale);
    } else {
      ragged ? AttendTile<2, true>(state, first, count, scale) : AttendTile<2, false>(state, first, count, scale);
    }
  }

  for (int64_t d = 0; d < state.head_size; ++d) {
    for (int64_t i = 0; i < kTaskQueries; i += kLanes) {
      float* const sums = state.sums + d * kTaskQueries + i;
      simd::Store(sums, simd::Load(sums) / simd::Load(state.totals + i));
    }
  }
  Transpose(state.sums, state.padded, kTaskQueries, state.rows);
  for (int64_t i = 0; i < task.queries; ++i) {
    T* to = static_cast<T*>(call.out.data) + ElementOf(call, task, call.out.stride, i);
    Narrow(state.rows + i * state.padded, state.head_size, to);
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
  const int64_t group = call.heads / call.kv_heads;
  int64_t work = 0;
  tasks_.clear();
  for (int32_t s = 0; s < call.layout.segments_count; ++s) {
    const AttentionSegment& segment = call.layout.segments[s];
    work += int64_t{segment.rows} * segment.keys * call.q.cols * 2;
    const int64_t queries = segment.rows * group;
    for (int64_t kv_head = 0; kv_head < call.kv_heads; ++kv_head) {
      for (int64_t first = 0; first < queries; first += kTaskQueries) {
        tasks_.push_back({&segment, kv_head, first, std::min(kTaskQueries, queries - first)});
      }
    }
  }
  const size_t floats = ScratchFloats(call.q.cols / call.heads);
  for (Workspace<float>& scratch : scratch_) scratch.Get(floats);  // Now, whichever threads come to run a task.
  team_.Run(static_cast<int64_t>(tasks_.size()), work >= kSharedWorkMin,
            [&](int64_t item, int32_t thread) { AttendTask(call, tasks_[item], scratch_[thread].Get(0)); });
}

}  // namespace quicksilver
