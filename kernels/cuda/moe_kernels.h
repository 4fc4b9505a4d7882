#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/ops.h"

namespace quicksilver {

// The parts of a mixture of experts (Ops says what). Every function enqueues one kernel, whose shape depends on the
// number of rows alone: who goes to which expert is found out on the device. Returns what the launch returned.

/// Ops::Route. `activation`: what RoutingRule::round_weights rounds to.
cudaError_t LaunchRoute(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, DType activation,
                        int32_t* experts, float* weights, cudaStream_t stream);

/// Columns of a row of experts' weights, and of what goes between the kernels: tensor cores read 16 bytes at a time.
constexpr int64_t ExpertColumns(int64_t columns, DType dtype) {
  return dtype == DType::kF32 ? columns : (columns + 7) / 8 * 8;
}

/// One Ops::ExpertMlp. All pointers are device memory; matrices between the kernels are of the activation type. A
/// choice is a row's j-th expert, n * k + j.
struct ExpertProblem {
  ExpertShape shape;
  Activation activation = Activation::kSilu;
  int32_t k = 0;
  const int32_t* experts = nullptr;       ///< [N, k], different ones a row.
  const float* expert_weights = nullptr;  ///< [N, k]
  const void* gate_up = nullptr;          ///< [count, 2 Im, ExpertColumns(H)], zeros behind column H.
  const void* down = nullptr;             ///< [count, H, ExpertColumns(Im)]
  ConstMatrix x;                          ///< [N, ExpertColumns(H)]; of bf16, rows at multiples of 16 bytes.
  int32_t* counts = nullptr;              ///< [count] rows of every expert held.
  int32_t* lists = nullptr;               ///< [count, N] their choices, ascending.
  void* inner = nullptr;                  ///< [N * k, ExpertColumns(Im)] act(gate(x)) up(x) of every choice.
  void* outputs = nullptr;                ///< [N * k, ExpertColumns(H)]
  bool add = false;
  Matrix out;  ///< [N, H]
};

/// Sets counts and lists.
cudaError_t LaunchListExperts(const ExpertProblem& problem, cudaStream_t stream);
/// inner = act(gate(x)) up(x), of every choice in a list.
cudaError_t LaunchExpertGateUp(const ExpertProblem& problem, cudaStream_t stream);
/// outputs = down(inner).
cudaError_t LaunchExpertDown(const ExpertProblem& problem, cudaStream_t stream);
/// out: the weighted sums of the outputs.
cudaError_t LaunchSumExperts(const ExpertProblem& problem, cudaStream_t stream);

}  // namespace quicksilver
