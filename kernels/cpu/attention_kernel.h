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
  const KvLayer& cache;
  Matrix out;
};

/// Softmax over tiles of keys, with a running maximum (Milakov and Gimelshein, arXiv 1805.02867). A tile holds the keys
/// of 32 consecutive positions, counted from position 0, so a query adds the same numbers in the same order whatever
/// rows come with it. Each tile is laid out once and serves all rows and query heads of a task.
class PagedAttention {
 public:
  /// `team` outlives this.
  explicit PagedAttention(ThreadTeam& team) : team_(team), scratch_(static_cast<size_t>(team.threads())) {}

  void Run(const AttentionCall& call);

  /// Some rows of one segment and the query heads of one key head.
  struct Task {
    const AttentionSegment* segment = nullptr;
    int64_t first_row = 0;  ///< In the segment.
    int64_t rows = 0;
    int64_t kv_head = 0;
  };

 private:
  ThreadTeam& team_;
  std::vector<Task> tasks_;
  std::vector<Workspace<float>> scratch_;  // One a thread.
};

}  // namespace quicksilver
