#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

// Attention on tensor cores. Blocks stay for the whole launch and take items in turns, where an item is a job of one
// key head. The queries of an item are the rows of the product, so that the heads of a group share every key and value
// that is loaded. Key tiles flow through a ring in shared memory that does not stop between items: while a block
// finishes one item, the keys of its next ones are on the way.
//
// What bounds it. Reading keys and values once is the floor while a key head has few queries: 4 hd bytes a key against
// 3 hd multiply-adds a query (the second product is done twice, see SplitWeights), so up to about 100 queries the
// memory is the slower one. It is kept busy by two or three tiles under way in every block, 64 to 192 KiB a
// multiprocessor where some 20 KiB would cover the latency, and by jobs of single chunks when a step has too few whole
// ones. With more queries, as in a prefill, products are: 128 queries share a tile, and nothing is split.
namespace quicksilver::attention {
namespace {

/// Brings the key tiles of all of the block's items to shared memory, one after another. Keeps only where it is, and
/// reads the rest again for each tile: registers are dear here.
template <typename S>
class Loader {
 public:
  __device__ __forceinline__ Loader(const Arguments& a, int32_t items) : a_(a), items_(items) { Open(); }

  /// True when the next tile has no key of a row of this step.
  __device__ __forceinline__ bool NextIsOld() const {
    const int32_t item = ItemOf(turn_);
    if (item >= items_) return false;
    const Job& job = JobOf(a_, item);
    if (job.unseen_key >= 0) return false;  // Its keys are those of another segment's rows, too.
    const int32_t first_key = tile_ * kTileKeys;
    return first_key + kTileKeys <= job.first_position || first_key >= job.first_position + job.rows;
  }

  /// Starts to load the next tile, if there is one, and closes a group of copies.
  __device__ __forceinline__ void LoadNext(unsigned char* stage) {
    const int32_t item = ItemOf(turn_);
    if (item < items_) {
      const Job& job = JobOf(a_, item);
      const Tile tile = {job.first_page, tile_ * kTileKeys, job.visible, KeyHeadOf(a_, item) * S::kHeadSize};
      const int32_t end_tile = job.end_tile;
      a_.aligned_keys ? Load(tile, stage) : LoadElements(tile, stage);
      if (++tile_ == end_tile) {
        ++turn_;
        Open();
      }
    }
    CopyAsyncCommit();
  }

 private:
  static constexpr int32_t kPieces = S::kHeadSize / 8;  // Of 16 bytes, a row.
  static constexpr int32_t kRowsAtOnce = S::kThreads / kPieces;
  static constexpr int32_t kPasses = kTileKeys / kRowsAtOnce;

  __device__ __forceinline__ void Open() {
    const int32_t item = ItemOf(turn_);
    if (item < items_) tile_ = JobOf(a_, item).first_tile;
  }

  struct Tile {
    int32_t first_page;  // Of the segment, in the page table.
    int32_t first_key;
    int32_t end_key;  // Nothing is loaded from there on, and zeros are stored.
    int32_t column;   // Of the key head.
  };

  __device__ __forceinline__ void Load(const Tile& tile, unsigned char* stage) const {
    const int32_t row = static_cast<int32_t>(threadIdx.x) / kPieces,
                  piece = static_cast<int32_t>(threadIdx.x) % kPieces;
    unsigned char* const to = stage + PieceOffset<S::kHeadSize>(row, piece);
    const int64_t first_byte = (tile.column + piece * 8) * int64_t{2};
    const unsigned char* const keys = static_cast<const unsigned char*>(a_.keys.data) + first_byte;
    const unsigned char* const values = static_cast<const unsigned char*>(a_.values.data) + first_byte;
    uint32_t slots[kPasses];  // All before the first copy: the page table is far away, too.
#pragma unroll
    for (int32_t i = 0; i < kPasses; ++i) slots[i] = SlotOf(tile, tile.first_key + row + i * kRowsAtOnce);
#pragma unroll
    for (int32_t i = 0; i < kPasses; ++i) {
      const bool valid = tile.first_key + row + i * kRowsAtOnce < tile.end_key;
      unsigned char* const row_to = to + i * kRowsAtOnce * S::kHeadSize * 2;
      CopyAsync16(row_to, keys + uint64_t{slots[i]} * a_.keys.stride_bytes, valid);
      CopyAsync16(row_to + S::kTileBytes, values + uint64_t{slots[i]} * a_.values.stride_bytes, valid);
    }
  }

  /// For rows that a copy of 16 bytes cannot take.
  __device__ __forceinline__ void LoadElements(const Tile& tile, unsigned char* stage) const {
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileKeys * S::kHeadSize; i += S::kThreads) {
      const int32_t row = i / S::kHeadSize, column = i % S::kHeadSize;
      const bool valid = tile.first_key + row < tile.end_key;
      const uint32_t slot = SlotOf(tile, tile.first_key + row);
      const uint16_t key = valid ? Element(a_.keys, slot, tile.column + column) : 0;
      const uint16_t value = valid ? Element(a_.values, slot, tile.column + column) : 0;
      unsigned char* const to = stage + PieceOffset<S::kHeadSize>(row, column / 8) + column % 8 * 2;
      *reinterpret_cast<uint16_t*>(to) = key;
      *reinterpret_cast<uint16_t*>(to + S::kTileBytes) = value;
    }
  }

  /// Where the cache keeps a position of the segment; of one past the end, where it keeps the last.
  __device__ __forceinline__ uint32_t SlotOf(const Tile& tile, int32_t position) const {
    return attention::SlotOf(a_, tile.first_page, min(position, tile.end_key - 1));
  }

  static __device__ __forceinline__ uint16_t Element(const Rows& rows, uint32_t row, int32_t column) {
    const unsigned char* const from = static_cast<const unsigned char*>(rows.data) + uint64_t{row} * rows.stride_bytes;
    return reinterpret_cast<const uint16_t*>(from)[column];
  }

  const Arguments& a_;
  const int32_t items_;
  int32_t turn_ = 0;
  int32_t tile_ = 0;
};

/// Which queries and columns of an item are this thread's.
struct Place {
  int32_t kv_head;
  int32_t first_query;  ///< Of the warp, in the job.
  int32_t first_piece;  ///< Of the warp's columns, in 8 columns.
};

/// Where in q or out the warp's columns of `query` of the job begin.
__device__ __forceinline__ uint64_t ByteOf(const Arguments& a, const Job& job, const Place& place, int32_t query,
                                           uint32_t stride_bytes) {
  return ElementByte(a, job.first_row, job.first_query + query, place.kv_head, place.first_piece * 8, 2, stride_bytes);
}

template <typename S>
__device__ __forceinline__ void LoadQueries(const Arguments& a, const Job& job, const Place& place,
                                            WarpState<S>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const int32_t query = place.first_query + lane / 4 + 8 * r;
    const bool exists = query < job.queries;
    const unsigned char* const row =
        static_cast<const unsigned char*>(a.q.data) + (exists ? ByteOf(a, job, place, query, a.q.stride_bytes) : 0);
    const uint16_t* const from = reinterpret_cast<const uint16_t*>(row) + lane % 4 * 2;
#pragma unroll
    for (int32_t i = 0; i < S::kColumns / 8; ++i) state.q[i / 2][i % 2 * 2 + r] = 0;
    if (exists && a.aligned_rows) {
#pragma unroll
      for (int32_t i = 0; i < S::kColumns / 8; ++i) {
        state.q[i / 2][i % 2 * 2 + r] = *reinterpret_cast<const uint32_t*>(from + i * 8);
      }
    } else if (exists) {
#pragma unroll
      for (int32_t i = 0; i < S::kColumns / 8; ++i) {
        state.q[i / 2][i % 2 * 2 + r] = from[i * 8] | uint32_t{from[i * 8 + 1]} << 16;
      }
    }
  }
}

template <typename S>
__device__ __forceinline__ void BeginItem(const Arguments& a, const Job& job, const Place& place, WarpState<S>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  LoadQueries(a, job, place, state);
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    // What stands in for a missing query sees what the last one sees.
    const int32_t query = min(place.first_query + lane / 4 + 8 * r, job.queries - 1);
    const int32_t position = job.first_position + a.group.Quotient(job.first_query + query);
    state.visible[r] = VisibleKeys(job.block_length, job.keys, position);
    state.all_largest[r] = MinusInfinity();
    state.all_total[r] = 0.0f;
  }
  state.shortest = __shfl_sync(kAllLanes, state.visible[0], 0);
  state.longest = __shfl_sync(kAllLanes, state.visible[1], 31);
  if (place.first_query >= job.queries) state.longest = 0;
#pragma unroll
  for (int32_t n = 0; n < S::kColumns / 8; ++n) {
    state.all_sums[n][0] = state.all_sums[n][1] = state.all_sums[n][2] = state.all_sums[n][3] = 0.0f;
  }
}

/// Adds up the scores of the warps that have each a part of the columns. Called by all threads.
template <typename S>
__device__ __forceinline__ void AddParts(float4* exchange, bool active, Scores& scores) {
  static_assert(S::kParts == 2);
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  if (active) {
#pragma unroll
    for (int32_t n = 0; n < kTileKeys / 8; ++n) {
      exchange[n * S::kThreads + thread] = make_float4(scores[n][0], scores[n][1], scores[n][2], scores[n][3]);
    }
  }
  __syncthreads();
  if (!active) return;
#pragma unroll
  for (int32_t n = 0; n < kTileKeys / 8; ++n) {
    const float4 other = exchange[n * S::kThreads + (thread ^ 32)];
    scores[n][0] = __fadd_rn(scores[n][0], other.x);
    scores[n][1] = __fadd_rn(scores[n][1], other.y);
    scores[n][2] = __fadd_rn(scores[n][2], other.z);
    scores[n][3] = __fadd_rn(scores[n][3], other.w);
  }
}

/// Hides the keys at `first_key` + n that the window or unseen_key hides from a query. Reads the job again: most steps
/// have neither, and registers are dear.
__device__ __forceinline__ void HideSingles(const Arguments& a, const Job& job, const Place& place, int32_t first_key,
                                            Scores& scores) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, lane_key = first_key + lane % 4 * 2;
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const int32_t query = min(place.first_query + lane / 4 + 8 * r, job.queries - 1);
    const int32_t row = a.group.Quotient(job.first_query + query);
    const int32_t first = FirstKey(a.window, job.block_length, job.first_position, job.first_position + row);
    const int32_t unseen = job.unseen_key < 0 ? -1 : job.unseen_key + row;
#pragma unroll
    for (int32_t n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        const int32_t key = lane_key + n * 8 + i;
        if (key < first || key == unseen) scores[n][2 * r + i] = MinusInfinity();
      }
    }
  }
}

/// Lets the warp's queries see the keys from `first_key` on, as far as they may. Called by all threads.
template <typename S>
__device__ __forceinline__ void AttendTile(const Arguments& a, const Job& job, const Place& place,
                                           const unsigned char* stage, float4* exchange, int32_t first_key,
                                           WarpState<S>& state) {
  const bool active = first_key < state.longest;
  Scores scores;
  if (active) ScoreTile(state, stage, place.first_piece, scores);
  if constexpr (S::kParts > 1) AddParts<S>(exchange, active, scores);
  if (!active) return;
  if (first_key + kTileKeys > state.shortest) MaskTile(state, first_key, scores);
  if (a.window != 0 || job.unseen_key >= 0) HideSingles(a, job, place, first_key, scores);
  WeighTile(a.scale, scores, state);
  const unsigned char* const values = stage + S::kTileBytes;
  if (state.shortest < min(first_key + kTileKeys, job.visible)) {
    AddValues<S, true>(scores, values, place.first_piece, first_key, state);
  } else {
    AddValues<S, false>(scores, values, place.first_piece, first_key, state);
  }
}

/// Keeps the chunk's softmax for the kernel that merges.
template <typename S>
__device__ __forceinline__ void StorePartial(const Arguments& a, const Job& job, const Place& place,
                                             const WarpState<S>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const int32_t query = place.first_query + lane / 4 + 8 * r;
    if (query >= job.queries) continue;
    const int64_t row = PartialRow(job, place.kv_head) + query;
    if (lane % 4 == 0 && place.first_piece == 0) {
      a.plan.partial_weights[2 * row] = state.largest[r];
      a.plan.partial_weights[2 * row + 1] = state.total[r];
    }
    float* const to = a.plan.partial_sums + row * S::kHeadSize + place.first_piece * 8 + lane % 4 * 2;
#pragma unroll
    for (int32_t n = 0; n < S::kColumns / 8; ++n) {
      *reinterpret_cast<float2*>(to + n * 8) = make_float2(state.sums[n][2 * r], state.sums[n][2 * r + 1]);
    }
  }
}

template <typename S>
__device__ __forceinline__ void StoreOutput(const Arguments& a, const Job& job, const Place& place,
                                            const WarpState<S>& state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const int32_t query = place.first_query + lane / 4 + 8 * r;
    if (query >= job.queries) continue;
    unsigned char* const row = static_cast<unsigned char*>(a.out) + ByteOf(a, job, place, query, a.out_stride_bytes);
    __nv_bfloat16* const to = reinterpret_cast<__nv_bfloat16*>(row) + lane % 4 * 2;
    const float reciprocal = __frcp_rn(state.all_total[r]);
#pragma unroll
    for (int32_t n = 0; n < S::kColumns / 8; ++n) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(__fmul_rn(state.all_sums[n][2 * r], reciprocal),
                                                        __fmul_rn(state.all_sums[n][2 * r + 1], reciprocal));
      if (a.aligned_rows) {
        *reinterpret_cast<__nv_bfloat162*>(to + n * 8) = pair;
      } else {
        to[n * 8] = pair.x;
        to[n * 8 + 1] = pair.y;
      }
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) TensorCoreKernel(const __grid_constant__ Arguments a) {
  unsigned char* const shared = SharedMemory();
  float4* const exchange = reinterpret_cast<float4*>(shared + S::kStages * S::kStageBytes);
  bool waited = !a.early_keys;
  if (waited) DependencyWait();
  const int32_t items = a.plan.counts->jobs * a.kv_heads.divisor;
  Loader<S> loader(a, items);
#pragma unroll 1
  for (int32_t i = 0; i < S::kStages - 1; ++i) {
    if (!waited && !loader.NextIsOld()) {
      DependencyWait();
      waited = true;
    }
    loader.LoadNext(shared + i * S::kStageBytes);
  }
  if (!waited) DependencyWait();
  DependencyLaunch();

  // Few queries leave warps without work. Blocks that share a multiprocessor begin with different warps, because a
  // warp's number decides which of the four schedulers it runs on.
  const int32_t rank = static_cast<int32_t>(blockIdx.x) * S::kBlocks / static_cast<int32_t>(gridDim.x);
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t group = (warp / S::kParts + rank * (S::kWarpGroups / S::kBlocks)) % S::kWarpGroups;
  WarpState<S> state;
  int32_t stage = 0;
  for (int32_t turn = 0; ItemOf(turn) < items; ++turn) {
    const int32_t item = ItemOf(turn);
    const Job& job = JobOf(a, item);  // Read again where it is used: registers are dear here.
    const Place place = {KeyHeadOf(a, item), group * kWarpQueries, warp % S::kParts * (S::kColumns / 8)};
    BeginItem(a, job, place, state);
    for (int32_t tile = job.first_tile; tile < job.end_tile;) {
      const int32_t end_tile = min(job.end_tile, ChunkEndTile(tile));
      ClearChunk(state);
      for (; tile < end_tile; ++tile) {
        CopyAsyncWait<S::kStages - 2>();
        __syncthreads();  // The tile is there for all, and nobody still reads the stage that is loaded next.
        loader.LoadNext(shared + (stage == 0 ? S::kStages - 1 : stage - 1) * S::kStageBytes);
        AttendTile(a, job, place, shared + stage * S::kStageBytes, exchange, tile * kTileKeys, state);
        stage = stage + 1 == S::kStages ? 0 : stage + 1;
      }
      CloseChunk(state);
      if (job.partial >= 0) {
        StorePartial(a, job, place, state);
      } else {
        MergeIntoAll(state);
      }
    }
    if (job.partial < 0) StoreOutput(a, job, place, state);
  }
}

template <typename S>
cudaError_t LaunchTensorCore(cudaStream_t stream, int32_t blocks, const Arguments& arguments) {
  return Launch(TensorCoreKernel<S>,
                {.grid = dim3(static_cast<uint32_t>(blocks)),
                 .block = dim3(S::kThreads),
                 .shared_bytes = S::kSharedBytes,
                 .stream = stream,
                 .overlap = true},
                arguments);
}

template <typename S>
Variant VariantOf() {
  return {S::kWarpGroups * kWarpQueries, S::kBlocks, LaunchTensorCore<S>};
}

}  // namespace

Variant TensorCoreVariant(int32_t head_size, int64_t queries_max) {
  const bool narrow = queries_max <= 64;
  switch (head_size) {
    case 64:
      return narrow ? VariantOf<Shape<64, 4, 4, 3>>() : VariantOf<Shape<64, 8, 6, 1>>();
    case 128:
      return narrow ? VariantOf<Shape<128, 4, 3, 2>>() : VariantOf<Shape<128, 8, 6, 1>>();
    case 256:
      return VariantOf<Shape<256, 4, 3, 1>>();
    default:
      return {};
  }
}

}  // namespace quicksilver::attention
