#pragma once

#include <cstdint>

#include "kernels/candidate.h"
#include "kernels/policy/merge_candidates.h"

namespace quicksilver {

/// The rows whose next-token distributions Ops::SoftEmbed turns into embeddings. Pointers are device memory.
struct SoftEmbedBatch {
  /// [count], as Ops::Candidates was asked; without guides and biases. Padding gives zeros.
  const CandidateRequest* requests = nullptr;
  int32_t count = 0;
  const Candidate* records = nullptr;  ///< [ranks, records_stride] what every rank said of them.
  int64_t records_stride = 0;
  int32_t ranks = 1;
};

/// softmax(z / temperature) of all ranks' logits; temperature 0: all is the best id's.
struct TemperedSoftmax {
  float temperature = 0.0f;
  float log_sum_exp = 0.0f;  ///< Of z / temperature.
  int32_t best_id = -1;
};

QS_HOST_DEVICE inline TemperedSoftmax TemperedSoftmaxOf(const SoftEmbedBatch& batch, int32_t i) {
  GatheredRow row;
  row.candidates = batch.records + i;
  row.candidate_stride = batch.records_stride;
  row.ranks = batch.ranks;
  merging::Merged merged;
  for (int32_t r = 0; r < row.ranks; ++r) merging::MergeLeaders(row.candidates[r * row.candidate_stride], merged);
  const double log_sum_exp = merging::MergeLogSumExp(row, &Candidate::tempered_log_sum_exp);
  return {batch.requests[i].temperature, static_cast<float>(log_sum_exp), merged.best_id};
}

}  // namespace quicksilver
