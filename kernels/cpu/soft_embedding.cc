#include "kernels/cpu/soft_embedding.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/simd.h"

namespace quicksilver {
namespace {

using simd::Floats;
using simd::kLanes;

// Probabilities that are held at once: those of one tile at least.
constexpr int64_t kSharesMax = 1 << 24;
// Ids whose embeddings stay in a core's nearest cache while all rows use a band of their columns.
constexpr int64_t kIdsABlock = 256;
constexpr int64_t kBandColumns = 2 * kLanes;
constexpr int64_t kRowsTogether = 4;

/// One row's logits [first_id, first_id + ids) on their way to probabilities.
struct ShareCall {
  const float* logits;
  int64_t ids;
  int32_t first_id;
  float soft_cap;
  float temperature;
  float log_sum_exp;  // Of z / T.
  int32_t best_id;
  bool round;  // To bf16.
  float* shares;
};

QS_INLINE Floats ShareOf(Floats z, const ShareCall& call) {
  if (call.soft_cap > 0.0f) z = call.soft_cap * simd::Tanh(z / call.soft_cap);
  const Floats share = simd::Exp(z / call.temperature - call.log_sum_exp);
  return call.round ? simd::RoundAs(static_cast<const uint16_t*>(nullptr), share) : share;
}

QS_MULTIVERSIONED void TakeShares(const ShareCall& call) {
  if (!(call.temperature > 0.0f)) {
    for (int64_t i = 0; i < call.ids; ++i) call.shares[i] = call.first_id + i == call.best_id ? 1.0f : 0.0f;
    return;
  }
  for (int64_t i = 0; i < call.ids; i += kLanes) {
    const int64_t left = call.ids - i;
    if (left >= kLanes) {
      simd::Store(call.shares + i, ShareOf(simd::Load(call.logits + i), call));
    } else {
      simd::StoreFirst(call.shares + i, ShareOf(simd::LoadFirst(call.logits + i, left), call), left);
    }
  }
}

/// Columns [first_col, first_col + cols) of `rows` rows of sums += shares * table, for ids [first, first + ids).
struct BandCall {
  const float* shares;
  int64_t shares_stride;
  ConstMatrix table;
  int64_t first;
  int64_t ids;
  int64_t first_col;
  int64_t cols;
  float* sums;
  int64_t sums_stride;
  int64_t rows;
};

template <typename T>
QS_INLINE Floats ColumnsAt(const T* row, int64_t c, int64_t cols) {
  if (c >= cols) return Floats{};
  return cols - c >= kLanes ? simd::Load(row + c) : simd::LoadFirst(row + c, cols - c);
}

QS_INLINE void StoreColumns(float* row, int64_t c, int64_t cols, Floats v) {
  if (c >= cols) return;
  if (cols - c >= kLanes) {
    simd::Store(row + c, v);
  } else {
    simd::StoreFirst(row + c, v, cols - c);
  }
}

template <typename T>
QS_INLINE void AddBand(const BandCall& call) {
  const T* const table = static_cast<const T*>(call.table.data) + call.first * call.table.stride + call.first_col;
  for (int64_t n = 0; n < call.rows; n += kRowsTogether) {
    const int64_t rows = call.rows - n < kRowsTogether ? call.rows - n : kRowsTogether;
    const float* shares[kRowsTogether];
    float* sums[kRowsTogether];
    Floats low[kRowsTogether], high[kRowsTogether];
    for (int64_t r = 0; r < kRowsTogether; ++r) {
      const int64_t row = n + (r < rows ? r : 0);
      shares[r] = call.shares + row * call.shares_stride + call.first;
      sums[r] = call.sums + row * call.sums_stride + call.first_col;
      low[r] = ColumnsAt(sums[r], 0, call.cols);
      high[r] = ColumnsAt(sums[r], kLanes, call.cols);
    }
    for (int64_t v = 0; v < call.ids; ++v) {
      const Floats a = ColumnsAt(table + v * call.table.stride, 0, call.cols);
      const Floats b = ColumnsAt(table + v * call.table.stride, kLanes, call.cols);
      for (int64_t r = 0; r < kRowsTogether; ++r) {
        low[r] += shares[r][v] * a;
        high[r] += shares[r][v] * b;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      StoreColumns(sums[r], 0, call.cols, low[r]);
      StoreColumns(sums[r], kLanes, call.cols, high[r]);
    }
  }
}

QS_MULTIVERSIONED void AddBandOf(const BandCall& call) {
  if (call.table.dtype == DType::kF32) {
    AddBand<float>(call);
  } else {
    AddBand<uint16_t>(call);
  }
}

}  // namespace

absl::Status SoftEmbedder::Run(const SoftEmbedCall& call) {
  const int64_t ids = std::max<int64_t>(1, call.weight.out_features()), tile_rows = gemm_.tile_rows();
  const auto together = static_cast<int32_t>(std::max<int64_t>(1, kSharesMax / ids / tile_rows) * tile_rows);
  for (int32_t first = 0; first < call.batch.count; first += together) {
    RETURN_IF_ERROR(RunTiles(call, first, std::min(together, call.batch.count - first)));
  }
  return absl::OkStatus();
}

/// Copies the hidden rows of requests [first, first + count) into tiles; padding requests and the rest of the last tile
/// are zeros.
void SoftEmbedder::PackTiles(const SoftEmbedCall& call, int32_t first, int32_t count) {
  const int64_t tile_rows = gemm_.tile_rows(), H = call.hidden.cols;
  const int64_t tiles = (count + tile_rows - 1) / tile_rows;
  const size_t row_bytes = static_cast<size_t>(H) * ElementBytes(gemm_.compute_dtype());
  char* const to = packed_rows_.Get(static_cast<size_t>(tiles * tile_rows) * row_bytes);
  std::memset(to, 0, static_cast<size_t>(tiles * tile_rows) * row_bytes);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t row = call.batch.requests[first + i].row;
    if (row < 0) continue;
    CHECK(row < call.hidden.rows);
    const char* const from =
        static_cast<const char*>(call.hidden.data) + row * call.hidden.stride * ElementBytes(call.hidden.dtype);
    ConvertRows({from, 1, H, H, call.hidden.dtype}, {to + i * row_bytes, 1, H, H, gemm_.compute_dtype()});
  }
  tiles_.clear();
  for (int64_t tile = 0; tile < tiles; ++tile) tiles_.push_back(to + static_cast<size_t>(tile * tile_rows) * row_bytes);
}

absl::Status SoftEmbedder::RunTiles(const SoftEmbedCall& call, int32_t first, int32_t count) {
  const int64_t tile_rows = gemm_.tile_rows(), H = call.out.cols;
  const int64_t ids = std::clamp<int64_t>(int64_t{call.shard.vocabulary} - call.shard.first_id, 0,
                                          std::min(call.weight.out_features(), call.table.rows));
  PackTiles(call, first, count);
  float* const shares = shares_.Get(static_cast<size_t>(count * ids));
  RETURN_IF_ERROR(gemm_.Multiply(tiles_, call.weight, [&](const TiledGemm::Product& product) {
    const int64_t wanted = std::min(product.cols, ids - product.first_col);
    for (int64_t r = 0; r < tile_rows && wanted > 0; ++r) {
      const int64_t i = product.tile * tile_rows + r;
      if (i >= count) break;
      const TemperedSoftmax softmax = TemperedSoftmaxOf(call.batch, first + static_cast<int32_t>(i));
      TakeShares({product.products + r * product.cols, wanted,
                  call.shard.first_id + static_cast<int32_t>(product.first_col), call.shard.soft_cap,
                  softmax.temperature, softmax.log_sum_exp, softmax.best_id, call.out.dtype == DType::kBf16,
                  shares + i * ids + product.first_col});
    }
  }));
  float* const sums = sums_.Get(static_cast<size_t>(count * H));
  std::fill(sums, sums + count * H, 0.0f);
  const int64_t bands = (H + kBandColumns - 1) / kBandColumns;
  team_.Run(bands, count * ids * H >= kSharedWorkMin, [&](int64_t band, int32_t) {
    const int64_t first_col = band * kBandColumns;
    for (int64_t v = 0; v < ids; v += kIdsABlock) {
      AddBandOf({shares, ids, call.table, v, std::min(kIdsABlock, ids - v), first_col,
                 std::min(kBandColumns, H - first_col), sums, H, count});
    }
  });
  for (int32_t i = 0; i < count; ++i) {
    if (call.batch.requests[first + i].row < 0) std::fill(sums + i * H, sums + (i + 1) * H, 0.0f);
  }
  char* const to = static_cast<char*>(call.out.data) + first * call.out.stride * ElementBytes(call.out.dtype);
  ConvertRows({sums, count, H, H, DType::kF32}, {to, count, H, call.out.stride, call.out.dtype});
  return absl::OkStatus();
}

}  // namespace quicksilver
