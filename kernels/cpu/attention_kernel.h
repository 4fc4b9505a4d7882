#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace quicksilver {

/// What Ops::Attention is asked for.
struct AttentionCall {
  const StepLayout& layout;
  ConstMatrix q;
  int32_t heads;
  int32_t kv_heads;
  const AttentionRule& rule;
  const KvLayer& cache;
  Matrix out;
};

/// Softmax over tiles of keys, with a running maximum (Milakov and Gimelshein, arXiv 1805.02867). A tile holds the keys
/// of 32 consecutive positions, counted from position 0, and a query is one lane of a vector, so it adds the same
/// numbers in the same order whatever queries are in the other lanes.
class PagedAttention {
 public:
  /// `team` outlives this.
  explicit PagedAttention(ThreadTeam& team) : team_(team), scratch_(static_cast<size_t>(team.threads())) {}

  void Run(const AttentionCall& call);

  /// Some queries of one segment that share a key head. A query is a row and a head; the heads of a row are neighbours.
  struct Task {
    const AttentionSegment* segment = nullptr;
    int64_t kv_head = 0;
    int64_t first_query = 0;  ///< row in the segment * (heads / kv_heads) + head in the group
    int64_t queries = 0;
  };

 private:
  ThreadTeam& team_;
  std::vector<Task> tasks_;
  std::vector<Workspace<float>> scratch_;  // One a thread.
};

}  // namespace quicksilver
