#pragma once

#include <cstring>
#include <vector>

#include "tests/support/cuda_twin/include/cublasLt.h"

// What the handles of the twin's cublasLt point to.

struct cublasLtContext {};

struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute_type = CUBLAS_COMPUTE_32F;
  int32_t scale_type = CUDA_R_32F;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t transpose_a = CUBLAS_OP_N;
  int32_t transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* a_scale = nullptr;
  const void* b_scale = nullptr;
  int8_t fast_accumulation = 0;
  int32_t a_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  int32_t b_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
};

struct cublasLtMatrixLayoutOpaque_t {
  uint32_t type = CUDA_R_32F;
  int32_t order = CUBLASLT_ORDER_COL;
  uint64_t rows = 0;
  uint64_t cols = 0;
  int64_t ld = 0;
  int32_t batch_count = 1;
  int64_t batch_stride = 0;
};

struct cublasLtMatmulPreferenceOpaque_t {
  uint32_t search_mode = 0;
  uint64_t workspace_bytes_max = 0;
  uint32_t reduction_mask = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace quicksilver::cuda_twin {

/// What cublasLt says when the runtime says `error`.
cublasStatus_t StatusOf(cudaError_t error);

/// Sets or gets an attribute: the buffer must have the size of its type.
template <typename T>
cublasStatus_t SetField(T* field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(field, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
cublasStatus_t GetField(const std::vector<T>& values, void* out, size_t bytes, size_t* written) {
  const size_t needed = values.size() * sizeof(T);
  if (written != nullptr) *written = needed;
  if (bytes == 0) return written != nullptr ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  if (out == nullptr || bytes < needed) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(out, values.data(), needed);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace quicksilver::cuda_twin
