#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace quicksilver {

/// What Ops::Candidates is asked for.
struct CandidateCall {
  ConstMatrix hidden;
  const GemmWeight& weight;
  const VocabularyShard& shard;
  const CandidateBatch& batch;
  int32_t top_count;
  Candidate* out;
  TopLogit* top;
};

/// The best of the logits seen so far. What is best does not depend on the order of seeing them.
struct LogitLeaders {
  int32_t best_id = -1;
  float best_logit = 0.0f;
  float second_logit = 0.0f;
  int32_t sampled_id = -1;
  float sampled_logit = 0.0f;
  double sampled_score = 0.0;
  int32_t top_size = 0;
  TopLogit* top = nullptr;  ///< A heap of at most top_count; the worst is in front.
  bool finite = true;
};

/// Sums over the logits of one panel without its largest and without the mask's; they are added up in panel order.
struct PanelSums {
  float largest = 0.0f;                ///< -inf when the panel holds no logit above that; the sums are 0 then.
  float sum = 0.0f;                    ///< Of e^(z - largest).
  float weighted_sum = 0.0f;           ///< Of (z - largest) e^(z - largest).
  float tempered_sum = 0.0f;           ///< Of e^((z - largest) / T).
  float tempered_weighted_sum = 0.0f;  ///< Of (z - largest) e^((z - largest) / T).
  float previous_sum = 0.0f;           ///< Of (z' - largest) e^(z - largest), the largest logit included.
};

/// Logits of single ids of a request; those of other shards stay.
struct SingleLogits {
  float mask = -std::numeric_limits<float>::infinity();
  float mask_previous = 0.0f;  ///< In the history.
  float asked = -std::numeric_limits<float>::infinity();
};

/// Runs the LM head panel by panel and reduces every panel's logits while they are in the cache.
class CandidateReducer {
 public:
  /// Both outlive this.
  CandidateReducer(TiledGemm& gemm, ThreadTeam& team) : gemm_(gemm), team_(team) {}

  absl::Status Run(const CandidateCall& call);

 private:
  void PlaceRequests(const CandidateCall& call);
  void ResetLeaders(const CandidateCall& call);
  void Visit(const CandidateCall& call, const TiledGemm::Product& product);
  void Finish(const CandidateCall& call, int32_t request);

  TiledGemm& gemm_;
  ThreadTeam& team_;
  std::vector<int64_t> first_rows_;     // [requests] the request's row among all tiles' rows; its guide is next.
  std::vector<int32_t> tile_requests_;  // [tiles + 1] the first request of each tile.
  std::vector<const void*> tiles_;      //
  Workspace<char> packed_rows_;         // [tiles, tile_rows, H]
  std::vector<LogitLeaders> leaders_;   // [threads, requests]
  Workspace<TopLogit> top_lists_;       // [threads, requests, top_count]
  std::vector<PanelSums> sums_;         // [requests, panels]
  std::vector<SingleLogits> singles_;   // [requests]
  std::vector<Workspace<float>> scratch_{static_cast<size_t>(team_.threads())};  // One a thread.
};

}  // namespace quicksilver
