#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/model/model_spec.h"
#include "worker/model/weights.h"

namespace quicksilver {

/// Runs the routed experts of layers, one after the other, in room for the largest step that is made once.
class RoutedExperts {
 public:
  /// `ops` outlives it. Does nothing for a spec without experts.
  absl::Status Prepare(const ModelSpec& spec, Ops& ops, int32_t rows_max);

  /// Routes each row to its experts and writes this rank's share of their weighted sum to `out`, or adds it (add) to
  /// what is there: the shares of all ranks add up, be they columns of every expert or whole ones. x, out: [N, H].
  void Run(const MoeWeights& weights, const StepLayout& layout, ConstMatrix x, bool add, Matrix out);

 private:
  Ops* ops_ = nullptr;
  RoutingRule rule_;
  DeviceBuffer logits_memory_, chosen_memory_, weights_memory_;
  Matrix logits_;              // [rows_max, E]
  int32_t* chosen_ = nullptr;  // [rows_max, k]
  float* weights_ = nullptr;   // [rows_max, k]
};

}  // namespace quicksilver
