#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/candidates.h"
#include "kernels/ops.h"

namespace quicksilver {

/// What Ops::SoftEmbed is asked for, without the product. Pointers are device memory.
struct SoftEmbedArguments {
  int64_t rows = 0;     ///< R, of the hidden states.
  int64_t columns = 0;  ///< V/tp, rows of the LM head.
  ConstMatrix table;
  VocabularyShard shard;
  SoftEmbedBatch batch;
  Matrix out;
};

/// Device memory that RunSoftEmbed() needs, aligned to 256 bytes.
size_t SoftEmbedWorkspaceBytes(const SoftEmbedArguments& sizes, size_t tile_bytes = kLogitsTileBytes);

/// Enqueues Ops::SoftEmbed on `stream`: tile by tile of the vocabulary, the product, its probabilities, and their
/// product with the table's rows, added up in float in one fixed order. Host numbers alone decide what is launched.
/// Returns the first error of a launch or of `product`.
cudaError_t RunSoftEmbed(const SoftEmbedArguments& arguments, const LogitsProduct& product, void* workspace,
                         cudaStream_t stream, size_t tile_bytes = kLogitsTileBytes);

}  // namespace quicksilver
