#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_plan.h"
#include "kernels/tensor.h"

namespace quicksilver::attention {

/// A matrix of the activation type as the kernels see it.
struct Rows {
  const void* data = nullptr;
  uint32_t stride_bytes =
      0;  ///< From one row to the next. A register less than 64 bits, and one instruction a product.
};

struct Arguments {
  Plan plan;
  Rows q, keys, values;
  void* out = nullptr;
  uint32_t out_stride_bytes = 0;
  const int32_t* page_table = nullptr;
  Divisor page_size;
  Divisor group;  ///< Query heads of a key head.
  Divisor kv_heads;
  int32_t head_size = 0;
  int32_t window = 0;         ///< AttentionRule::window
  float scale = 1.0f;         ///< Of the dot products. Scores of the tensor-core kernels are in units of ln 2.
  bool early_keys = false;    ///< The plan, and keys of rows of earlier steps, may be read before DependencyWait().
  bool aligned_keys = false;  ///< Rows of keys and values begin at multiples of 16 bytes.
  bool aligned_rows = false;  ///< Rows of q and out begin at multiples of 4 bytes.
};

/// A kernel that does the jobs of a plan.
struct Variant {
  int32_t tile_queries = 0;
  int32_t blocks_per_multiprocessor = 1;
  cudaError_t (*launch)(cudaStream_t stream, int32_t blocks, const Arguments& arguments) = nullptr;
};

/// The tensor-core kernels, bf16 only. `queries_max`: of any segment and key head. A null launch: no such head size.
Variant TensorCoreVariant(int32_t head_size, int64_t queries_max);

/// The kernels that multiply in float: any head size up to kHeadSizeMax.
Variant FloatVariant(DType dtype, int32_t head_size);

inline constexpr int32_t kHeadSizeMax = 512;

/// Merges the partial results of the plan into `out`. `queries`: rows * heads of the step. `tensor_core`: which kernels
/// have made the results.
cudaError_t LaunchMerge(cudaStream_t stream, DType dtype, bool tensor_core, int64_t queries, int32_t multiprocessors,
                        const Arguments& arguments);

}  // namespace quicksilver::attention
