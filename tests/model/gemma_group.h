#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/policy/merge_candidates.h"
#include "tests/support/model_group.h"
#include "tests/support/threaded_communicator.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// What one sequence does in a step: committed tokens, which are causal, or a whole canvas behind them.
struct GemmaSpan {
  enum class Kind { kCommitted, kFirstCanvas, kCanvas };
  Kind kind = Kind::kCommitted;
  std::vector<TokenId> ids;
  int32_t first_position = 0;
  std::vector<int32_t> pages;
  SamplingRule sampling;  ///< Of a canvas.
  uint32_t forward = 0;   ///< Of the draws.
};

/// The ranks of a DiffusionGemma in one process.
class GemmaGroup {
 public:
  using MakeOps = std::function<std::unique_ptr<Ops>()>;
  static absl::StatusOr<std::unique_ptr<GemmaGroup>> Load(const std::string& directory, int ranks,
                                                          const MakeOps& make_ops);

  const ModelSpec& spec() const { return members_[0].model->spec(); }
  const Transformer& model(int rank) const { return *members_[static_cast<size_t>(rank)].model; }

  struct Result {
    HostRows logits;                 ///< Of all rows, not capped: [N, V].
    std::vector<RowChoice> choices;  ///< Of the canvases' rows.
  };
  /// Runs one step on all ranks; canvases are conditioned for the next.
  Result Step(const std::vector<GemmaSpan>& spans);

  static constexpr int32_t kPageSize = 4;

 private:
  struct Member {
    std::unique_ptr<Ops> ops;
    std::unique_ptr<Communicator> communicator;
    std::unique_ptr<Transformer> model;
  };
  struct Arrays;

  explicit GemmaGroup(int ranks) : group_(ranks), members_(static_cast<size_t>(ranks)) {}
  static Arrays LayOut(const std::vector<GemmaSpan>& spans);
  void RunRank(int rank, const Arrays& arrays, const std::vector<GemmaSpan>& spans, HostRows& logits, Result& result);

  ThreadedGroup group_;
  std::vector<Member> members_;
};

}  // namespace quicksilver
