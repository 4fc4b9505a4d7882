#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace quicksilver {

/// Ops::ExpertMlp.
struct ExpertCall {
  ConstMatrix x;
  const ExpertWeights& weights;  ///< Of ExpertMixer::Prepare.
  Activation activation;
  const int32_t* experts;
  const float* expert_weights;
  int32_t k;
  bool add;
  Matrix out;
};

/// Runs the rows of a batch through their experts: rows are gathered by expert into tiles, and all experts' tiles are
/// multiplied at once, each by TiledGemm's one kernel, so the bits of a row do not depend on its neighbours.
class ExpertMixer {
 public:
  /// `gemm` and `team` outlive this and all its weights.
  ExpertMixer(DType activation, TiledGemm& gemm, ThreadTeam& team)
      : activation_(activation), gemm_(gemm), team_(team) {}

  std::unique_ptr<ExpertWeights> Prepare(const ExpertShape& shape) const;
  absl::Status Run(const ExpertCall& call);

 private:
  class Weights;
  /// The rows of one expert, in whole tiles.
  struct Group {
    const Weights* weights;
    int32_t expert;
    int64_t first_tile;
    int64_t tiles;
  };

  absl::Status RunPass(const ExpertCall& call, int64_t first, int64_t rows);
  /// Deals out places to the experts of rows [first, first + rows): sets groups_, places_ and rows_.
  void Plan(const ExpertCall& call, int64_t first, int64_t rows);
  void Gather(const ExpertCall& call, int64_t first);
  absl::Status MultiplyGroups(ExpertMatrix which, int64_t in, Matrix out);
  void Activate(Activation activation, int64_t mlp, const Matrix& gate_up);

  DType activation_;
  TiledGemm& gemm_;
  ThreadTeam& team_;
  std::vector<Group> groups_;
  std::vector<int64_t> next_place_;  // Of each expert that is held.
  std::vector<int32_t> places_;      // [rows, k]: where a row's copy for its j-th expert stands, or -1.
  std::vector<int32_t> rows_;        // Of every place: the row, or -1 for padding.
  std::vector<const void*> tiles_;
  std::vector<TiledGemm::Job> jobs_;
  Workspace<char> gathered_;  // [places, H or Im] of the compute type.
  Workspace<char> gate_up_;   // [places, 2 Im]
  Workspace<char> outputs_;   // [places, H]
};

}  // namespace quicksilver
