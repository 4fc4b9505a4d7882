#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/candidate.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// What Ops::Candidates is asked for, without the product. Pointers are device memory.
struct CandidatesArguments {
  int64_t rows = 0;     ///< R, of the hidden states.
  int64_t columns = 0;  ///< V/tp, rows of the LM head.
  VocabularyShard shard;
  CandidateBatch batch;
  int32_t top_count = 0;     ///< In [0, kTopLogitsMax].
  Candidate* out = nullptr;  ///< [batch.count]
  TopLogit* top = nullptr;   ///< [batch.count, top_count]
};

/// Logits of one tile of the vocabulary. Smaller than the L2 cache of an H100 (50 MiB), which also holds what the
/// product streams; and at 2,048 rows just under two waves of 128 x 256 outputs on 132 processors.
inline constexpr size_t kLogitsTileBytes = size_t{32} << 20;

/// Enqueues the product of all R hidden states and rows [first_column, first_column + logits.cols) of the LM head.
/// logits: [R, at most a tile] floats; its rows are 16-byte aligned and a multiple of 1,024 apart. A logit's bits must
/// not depend on the shape of the tile.
using LogitsProduct = std::function<cudaError_t(int64_t first_column, Matrix logits)>;

/// Device memory that RunCandidates() needs, aligned to 256 bytes. Never falls when an argument but tile_bytes rises.
size_t CandidatesWorkspaceBytes(const CandidatesArguments& sizes, size_t tile_bytes = kLogitsTileBytes);

/// Enqueues Ops::Candidates on `stream`: tile by tile, the product and the reduction of its logits to a record for
/// every request and 1,024 ids; then the merge of the records. A tile holds at most tile_bytes of logits, but at least
/// 1,024 columns. Results depend neither on the tiles nor on the other requests. Host numbers alone decide what is
/// launched, so that it can be captured: `rows` and `requests_count` may be upper bounds, with padding requests.
/// Returns the first error of a launch or of `product`.
cudaError_t RunCandidates(const CandidatesArguments& arguments, const LogitsProduct& product, void* workspace,
                          cudaStream_t stream, size_t tile_bytes = kLogitsTileBytes);

}  // namespace quicksilver
