#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/moe_kernels.h"

namespace quicksilver::moe {

/// Products of the rows in every expert's list with one of its matrices.
template <typename T>
struct Products {
  const T* rows = nullptr;  ///< Row choice / choices_a_row is multiplied.
  int64_t row_stride = 0;
  int32_t choices_a_row = 1;
  int32_t depth = 0;           ///< Columns of a row, ExpertColumns().
  const T* weights = nullptr;  ///< [count, matrix_rows, depth]
  int32_t matrix_rows = 0;
  int32_t columns = 0;  ///< Im of gate and up, else H.
  T* out = nullptr;     ///< [choices, out_stride], zeros behind `columns`.
  int32_t out_stride = 0;
  const int32_t* counts = nullptr;
  const int32_t* lists = nullptr;
  int32_t list_stride = 0;
  Activation activation = Activation::kSilu;
};

template <typename T>
Products<T> GateUpProducts(const ExpertProblem& p) {
  const int32_t inner = static_cast<int32_t>(ExpertColumns(p.shape.mlp, p.out.dtype));
  return {.rows = static_cast<const T*>(p.x.data),
          .row_stride = p.x.stride,
          .choices_a_row = p.k,
          .depth = static_cast<int32_t>(ExpertColumns(p.shape.hidden, p.out.dtype)),
          .weights = static_cast<const T*>(p.gate_up),
          .matrix_rows = static_cast<int32_t>(2 * p.shape.mlp),
          .columns = static_cast<int32_t>(p.shape.mlp),
          .out = static_cast<T*>(p.inner),
          .out_stride = inner,
          .counts = p.counts,
          .lists = p.lists,
          .list_stride = static_cast<int32_t>(p.x.rows),
          .activation = p.activation};
}

template <typename T>
Products<T> DownProducts(const ExpertProblem& p) {
  const int32_t inner = static_cast<int32_t>(ExpertColumns(p.shape.mlp, p.out.dtype));
  return {.rows = static_cast<const T*>(p.inner),
          .row_stride = inner,
          .choices_a_row = 1,
          .depth = inner,
          .weights = static_cast<const T*>(p.down),
          .matrix_rows = static_cast<int32_t>(p.shape.hidden),
          .columns = static_cast<int32_t>(p.shape.hidden),
          .out = static_cast<T*>(p.outputs),
          .out_stride = static_cast<int32_t>(ExpertColumns(p.shape.hidden, p.out.dtype)),
          .counts = p.counts,
          .lists = p.lists,
          .list_stride = static_cast<int32_t>(p.x.rows)};
}

/// Implementations of LaunchExpertGateUp and LaunchExpertDown; gated: the former.
cudaError_t LaunchFloat(const ExpertProblem& problem, bool gated, cudaStream_t stream);
cudaError_t LaunchTensorCore(const ExpertProblem& problem, bool gated, cudaStream_t stream);

}  // namespace quicksilver::moe
