#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace quicksilver {

/// Ops::SoftEmbed.
struct SoftEmbedCall {
  ConstMatrix hidden;
  const GemmWeight& weight;
  ConstMatrix table;
  const VocabularyShard& shard;
  const SoftEmbedBatch& batch;
  Matrix out;
};

/// Turns the logits of a few tiles of rows at a time into probabilities and multiplies these by the embedding, column
/// by column band, ids in ascending order: the bits of a row depend on nothing else.
class SoftEmbedder {
 public:
  /// Both outlive this.
  SoftEmbedder(TiledGemm& gemm, ThreadTeam& team) : gemm_(gemm), team_(team) {}

  absl::Status Run(const SoftEmbedCall& call);

 private:
  absl::Status RunTiles(const SoftEmbedCall& call, int32_t first, int32_t count);
  void PackTiles(const SoftEmbedCall& call, int32_t first, int32_t count);

  TiledGemm& gemm_;
  ThreadTeam& team_;
  std::vector<const void*> tiles_;
  Workspace<char> packed_rows_;  // [tiles, tile_rows, H]
  Workspace<float> shares_;      // [rows, ids] probabilities
  Workspace<float> sums_;        // [rows, H]
};

}  // namespace quicksilver
