#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/candidate.h"

namespace quicksilver {

// The launches that RunCandidates() is made of. All of it is internal to kernels/cuda/candidates.

/// Ids that are reduced to one CandidatePart. The cut is by the id's place in the shard, so sums are the same whatever
/// the tiles are; a tile begins at a multiple of this.
inline constexpr int32_t kPartIds = 1024;

/// One tile of the vocabulary: the logits of all hidden states, and who asks for what.
struct CandidateTile {
  const float* logits = nullptr;  ///< [R, columns]
  int64_t stride = 0;             ///< Floats from a row to the next: a multiple of 4, and whole parts fit.
  int32_t first = 0;              ///< Place of column 0 in the shard.
  int32_t columns = 0;            ///< Real ids.
  VocabularyShard shard;
  CandidateBatch batch;
  int64_t shard_columns = 0;  ///< V/tp: floats from one history slot to the next.
};

/// What kPartIds ids of one request come down to. The sums leave out the largest logit, where its 1 would swallow small
/// terms, and the mask.
struct alignas(16) CandidatePart {
  float largest = 0.0f;       ///< Of the allowed ids; -inf when there is none above that, and the sums are 0 then.
  float second = 0.0f;        ///< Largest of another allowed id, or -inf.
  float sum = 0.0f;           ///< Of e^(z - largest).
  float weighted_sum = 0.0f;  ///< Of (z - largest) e^(z - largest).
  float tempered_sum = 0.0f;  ///< Of e^((z - largest) / T); 0 when T = 0.
  float mask_logit = 0.0f;    ///< -inf when the mask is elsewhere.
  float tempered_weighted_sum = 0.0f;  ///< Of (z - largest) e^((z - largest) / T); 0 when T = 0.
  float previous_sum = 0.0f;   ///< Of (z' - largest) e^(z - largest), z' in the history, the largest logit included.
  float mask_previous = 0.0f;  ///< The mask's z'.
  float asked_logit = 0.0f;    ///< -inf when the asked id is elsewhere.
  int32_t best_id = -1;        ///< The smallest id with the logit `largest`, or -1.
  int32_t finite = 1;          ///< 0: the other fields mean nothing.
  double sampled_score = 0.0;  ///< When T > 0: the best of this part and of some of those before it.
  int32_t sampled_id = -1;     ///< -1: none.
  float sampled_logit = 0.0f;  ///<
};

/// What the top list of one request keeps between two tiles.
struct TopState {
  uint64_t threshold = 0;  ///< Keys at or below it are out of the list for good.
  int32_t count = 0;       ///< Keys kept, in no order.
  int32_t padding = 0;
};

/// Keys that a TopState may keep; more than kTopLogitsMax, so that not every newcomer means sorting.
inline constexpr int32_t kTopKeysMax = 512;

/// z = c tanh(z / c), c the shard's soft_cap, of `rows` rows of the tile, in place.
cudaError_t LaunchSoftCap(const CandidateTile& tile, float* logits, int64_t rows, cudaStream_t stream);

/// Reduces the tile, and keeps its logits where requests have a slot: parts[r, p] of every request r that is not
/// padding. parts: [requests, row_parts].
cudaError_t LaunchCandidateParts(const CandidateTile& tile, CandidatePart* parts, int32_t row_parts,
                                 cudaStream_t stream);

/// Merges the row_parts parts of every request into `out`.
cudaError_t LaunchCandidateMerge(const CandidateBatch& batch, const CandidatePart* parts, int32_t row_parts,
                                 Candidate* out, cudaStream_t stream);

/// Takes the tile (tiles come in ascending order, from `first` = 0) into the top lists. states: [requests]; keys:
/// [requests, kTopKeysMax]; top: [requests, top_count] is written with the last tile, nullptr before.
cudaError_t LaunchTopLogits(const CandidateTile& tile, int32_t top_count, TopState* states, uint64_t* keys,
                            TopLogit* top, cudaStream_t stream);

}  // namespace quicksilver
