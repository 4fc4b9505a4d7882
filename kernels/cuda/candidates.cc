#include "kernels/cuda/candidates.h"

#include <algorithm>

#include "common/check.h"
#include "kernels/cuda/candidate_kernels.h"

namespace quicksilver {
namespace {

constexpr size_t kAlignment = 256;

constexpr int64_t RoundUp(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

/// Columns of a tile: whole parts, as many as fit into tile_bytes, at least one, at most all.
int64_t TileColumns(const CandidatesArguments& arguments, size_t tile_bytes) {
  const int64_t row_bytes_max = static_cast<int64_t>(tile_bytes) / std::max<int64_t>(arguments.rows, 1);
  const int64_t fitting = row_bytes_max / static_cast<int64_t>(kPartIds * sizeof(float)) * kPartIds;
  return std::clamp<int64_t>(fitting, kPartIds, std::max<int64_t>(RoundUp(arguments.columns, kPartIds), kPartIds));
}

/// Where the workspace begins to hold what.
struct Layout {
  size_t parts = 0;
  size_t states = 0;
  size_t keys = 0;
  size_t end = 0;
};

Layout LayOut(const CandidatesArguments& arguments, size_t logits_bytes) {
  const size_t requests = static_cast<size_t>(arguments.batch.count);
  const size_t row_parts = static_cast<size_t>(RoundUp(arguments.columns, kPartIds) / kPartIds);
  const size_t listed = arguments.top_count > 0 ? requests : 0;
  const auto after = [](size_t begin, size_t bytes) {
    return static_cast<size_t>(RoundUp(static_cast<int64_t>(begin + bytes), kAlignment));
  };
  Layout layout;
  layout.parts = after(0, logits_bytes);
  layout.states = after(layout.parts, requests * row_parts * sizeof(CandidatePart));
  layout.keys = after(layout.states, listed * sizeof(TopState));
  layout.end = after(layout.keys, listed * kTopKeysMax * sizeof(uint64_t));
  return layout;
}

size_t LogitsBytesMax(const CandidatesArguments& sizes, size_t tile_bytes) {
  const size_t row_floats = static_cast<size_t>(RoundUp(std::max<int64_t>(sizes.columns, 1), kPartIds));
  const size_t rows = static_cast<size_t>(sizes.rows);
  // Rounding makes a tile of fewer rows larger at times, but never larger than either of these.
  const size_t fitting = std::min(tile_bytes, rows * row_floats * sizeof(float));
  return std::max(fitting, rows * kPartIds * sizeof(float));
}

}  // namespace

size_t CandidatesWorkspaceBytes(const CandidatesArguments& sizes, size_t tile_bytes) {
  return LayOut(sizes, LogitsBytesMax(sizes, tile_bytes)).end;
}

cudaError_t RunCandidates(const CandidatesArguments& arguments, const LogitsProduct& product, void* workspace,
                          cudaStream_t stream, size_t tile_bytes) {
  CHECK(arguments.top_count >= 0 && arguments.top_count <= kTopLogitsMax);
  if (arguments.batch.count == 0) return cudaSuccess;
  char* const base = static_cast<char*>(workspace);
  const Layout layout = LayOut(arguments, LogitsBytesMax(arguments, tile_bytes));
  CandidatePart* const parts = reinterpret_cast<CandidatePart*>(base + layout.parts);
  TopState* const states = reinterpret_cast<TopState*>(base + layout.states);
  uint64_t* const keys = reinterpret_cast<uint64_t*>(base + layout.keys);

  const int64_t tile_columns = TileColumns(arguments, tile_bytes);
  // Padding rows of the vocabulary need no product. Without hidden states all requests are padding.
  const int64_t ids =
      arguments.rows == 0
          ? 0
          : std::clamp<int64_t>(int64_t{arguments.shard.vocabulary} - arguments.shard.first_id, 0, arguments.columns);
  const int32_t row_parts = static_cast<int32_t>(RoundUp(ids, kPartIds) / kPartIds);
  CandidateTile tile = {.logits = reinterpret_cast<const float*>(base),
                        .stride = tile_columns,
                        .shard = arguments.shard,
                        .batch = arguments.batch,
                        .shard_columns = arguments.columns};
  for (int64_t first = 0; first == 0 || first < ids; first += tile_columns) {
    tile.first = static_cast<int32_t>(first);
    tile.columns = static_cast<int32_t>(std::min(tile_columns, ids - first));
    cudaError_t error = cudaSuccess;
    if (tile.columns > 0) {
      error = product(first, {base, arguments.rows, tile.columns, tile_columns, DType::kF32});
      if (error == cudaSuccess && tile.shard.soft_cap > 0.0f) {
        error = LaunchSoftCap(tile, reinterpret_cast<float*>(base), arguments.rows, stream);
      }
      if (error == cudaSuccess) error = LaunchCandidateParts(tile, parts, row_parts, stream);
    }
    if (error == cudaSuccess && arguments.top_count > 0) {
      TopLogit* const top = first + tile_columns >= ids ? arguments.top : nullptr;
      error = LaunchTopLogits(tile, arguments.top_count, states, keys, top, stream);
    }
    if (error != cudaSuccess) return error;
  }
  return LaunchCandidateMerge(arguments.batch, parts, row_parts, arguments.out, stream);
}

}  // namespace quicksilver
