#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/cublaslt_objects.h"
#include "tests/support/cuda_twin/matmul.h"
#include "tests/support/cuda_twin/memory.h"
#include "tests/support/cuda_twin/stream.h"

using namespace quicksilver::cuda_twin;

namespace {

// The algorithms of this library. Plain sums in the order of k, or in as many runs of it as the split says. Stream-K
// does as the real ones do that share the work of a tile among processors: the number of columns decides how k is cut,
// so a column's bits depend on how many there are.
constexpr int kPlain = 66;
constexpr int kStreamK = 67;
constexpr int kSplitsMax = 16;
constexpr int kStreamColumns = 64;

struct Algorithm {
  int32_t id;
  uint32_t tile;
  int32_t splits;
  uint32_t reduction;
  uint32_t swizzle;
  uint32_t custom;
  uint32_t stages;
  uint16_t inner_shape;
  uint16_t cluster;
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

Algorithm Unwrap(const cublasLtMatmulAlgo_t& wrapped) {
  Algorithm algorithm;
  std::memcpy(&algorithm, &wrapped, sizeof algorithm);
  return algorithm;
}

cublasLtMatmulAlgo_t Wrap(const Algorithm& algorithm) {
  cublasLtMatmulAlgo_t wrapped = {};
  std::memcpy(&wrapped, &algorithm, sizeof algorithm);
  return wrapped;
}

MatrixView View(const void* data, const cublasLtMatrixLayoutOpaque_t& layout) {
  MatrixView view{data,
                  static_cast<cudaDataType_t>(layout.type),
                  static_cast<int64_t>(layout.rows),
                  static_cast<int64_t>(layout.cols),
                  1,
                  layout.ld};
  if (layout.order == CUBLASLT_ORDER_ROW) std::swap(view.row_stride, view.column_stride);
  return view;
}

// One problem, as the descriptors say it.
struct Problem {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, c, d;

  int64_t m() const { return static_cast<int64_t>(operation.transpose_a == CUBLAS_OP_N ? a.rows : a.cols); }
  int64_t k() const { return static_cast<int64_t>(operation.transpose_a == CUBLAS_OP_N ? a.cols : a.rows); }
  int64_t n() const { return static_cast<int64_t>(operation.transpose_b == CUBLAS_OP_N ? b.cols : b.rows); }
};

bool LayoutFits(const cublasLtMatrixLayoutOpaque_t& layout) {
  const bool by_columns = layout.order == CUBLASLT_ORDER_COL;
  const auto run = static_cast<int64_t>(by_columns ? layout.rows : layout.cols);
  return (by_columns || layout.order == CUBLASLT_ORDER_ROW) && layout.ld >= run && layout.batch_count == 1;
}

// What the library multiplies. FP8 as on Hopper: A transposed and B not, m and k multiples of 16.
cublasStatus_t CheckProblem(const Problem& p) {
  const auto k_of_b = static_cast<int64_t>(p.operation.transpose_b == CUBLAS_OP_N ? p.b.rows : p.b.cols);
  const bool shapes = k_of_b == p.k() && static_cast<int64_t>(p.d.rows) == p.m() &&
                      static_cast<int64_t>(p.d.cols) == p.n() && p.c.rows == p.d.rows && p.c.cols == p.d.cols;
  if (!shapes || p.m() == 0 || p.n() == 0 || p.k() == 0) return CUBLAS_STATUS_INVALID_VALUE;
  for (const auto* layout : {&p.a, &p.b, &p.c, &p.d}) {
    if (!LayoutFits(*layout)) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool fp8 = p.a.type == CUDA_R_8F_E4M3;
  const bool outputs = (p.d.type == CUDA_R_32F || p.d.type == CUDA_R_16BF) && p.c.type == p.d.type;
  const bool inputs = p.a.type == p.b.type && (p.a.type == CUDA_R_32F || p.a.type == CUDA_R_16BF || fp8);
  const bool compute =
      p.operation.compute_type == CUBLAS_COMPUTE_32F || p.operation.compute_type == CUBLAS_COMPUTE_32F_PEDANTIC;
  if (!outputs || !inputs || !compute || p.operation.scale_type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (p.a.type == CUDA_R_32F && p.d.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (p.operation.epilogue != CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!fp8) {
    const bool scaled = p.operation.a_scale != nullptr || p.operation.b_scale != nullptr;
    return scaled ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
  }
  const bool form = p.operation.transpose_a == CUBLAS_OP_T && p.operation.transpose_b == CUBLAS_OP_N;
  const bool sizes = p.m() % 16 == 0 && p.k() % 16 == 0 && p.a.ld % 16 == 0 && p.b.ld % 16 == 0;
  if (!form || !sizes) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const auto& [mode, scale] : {std::pair(p.operation.a_scale_mode, p.operation.a_scale),
                                    std::pair(p.operation.b_scale_mode, p.operation.b_scale)}) {
    const bool outer = mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    if (!outer && mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (outer && scale == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  }
  return p.operation.a_scale_mode == p.operation.b_scale_mode ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

int SplitsOf(const Algorithm& algorithm, const Problem& p) {
  if (algorithm.id == kStreamK) return static_cast<int>(1 + (p.n() - 1) / kStreamColumns % 3);
  return std::max(algorithm.splits, 1);
}

size_t WorkspaceOf(const Algorithm& algorithm, const Problem& p) {
  const int splits = SplitsOf(algorithm, p);
  return splits == 1 ? 0 : static_cast<size_t>(splits) * static_cast<size_t>(p.m() * p.n()) * sizeof(float);
}

cublasStatus_t CheckAlgorithm(const Algorithm& algorithm, const Problem& p) {
  const bool known = algorithm.id == kPlain || (algorithm.id == kStreamK && algorithm.splits <= 1);
  const bool tile = algorithm.tile == CUBLASLT_MATMUL_TILE_64x64 || algorithm.tile == CUBLASLT_MATMUL_TILE_128x128;
  const bool split = algorithm.splits >= 0 && algorithm.splits <= kSplitsMax && algorithm.splits <= p.k();
  const bool reduced = algorithm.splits <= 1 || algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  return known && tile && split && reduced ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

constexpr Algorithm Make(int32_t id, uint32_t tile, int32_t splits) {
  return {.id = id,
          .tile = tile,
          .splits = splits,
          .reduction = splits > 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE,
          .swizzle = 0,
          .custom = 0,
          .stages = CUBLASLT_MATMUL_STAGES_64x4,
          .inner_shape = 0,
          .cluster = 0};
}

// The best guess first, which here as there is another one for few columns than for many.
std::vector<Algorithm> Advice(const Problem& p) {
  const Algorithm split = Make(kPlain, CUBLASLT_MATMUL_TILE_64x64, static_cast<int>(std::min<int64_t>(4, p.k())));
  const Algorithm plain = Make(kPlain, CUBLASLT_MATMUL_TILE_128x128, 1);
  const Algorithm small = Make(kPlain, CUBLASLT_MATMUL_TILE_64x64, 1);
  const Algorithm stream = Make(kStreamK, CUBLASLT_MATMUL_TILE_128x128, 1);
  if (p.n() <= 64) return {split, small, plain, stream};
  return {stream, plain, small, split};
}

int64_t Extent(const MatrixView& m) {
  return ((m.rows - 1) * m.row_stride + (m.columns - 1) * m.column_stride + 1) * ElementBytes(m.type);
}

bool IsReadable(const void* pointer, int64_t bytes) {
  return CheckDeviceRange(pointer, static_cast<size_t>(bytes)) == cudaSuccess;
}

// On the device this would be an access out of bounds: it breaks the context.
bool InBounds(const Product& p) {
  const bool scales = (p.a_scale == nullptr || IsReadable(p.a_scale, 4 + 4 * p.a_scale_step * (p.d.rows - 1))) &&
                      (p.b_scale == nullptr || IsReadable(p.b_scale, 4 + 4 * p.b_scale_step * (p.d.columns - 1)));
  const bool partial =
      p.splits == 1 || IsReadable(p.partial, static_cast<int64_t>(sizeof(float)) * p.splits * p.d.rows * p.d.columns);
  return scales && partial && IsReadable(p.a.data, Extent(p.a)) && IsReadable(p.b.data, Extent(p.b)) &&
         IsReadable(p.d.data, Extent(p.d)) && (p.beta == 0.0f || IsReadable(p.c.data, Extent(p.c)));
}

Product MakeProduct(const Problem& problem, const Algorithm& algorithm) {
  Product product;
  product.splits = SplitsOf(algorithm, problem);
  const cublasLtMatmulDescOpaque_t& operation = problem.operation;
  product.a_scale = static_cast<const float*>(operation.a_scale);
  product.b_scale = static_cast<const float*>(operation.b_scale);
  product.a_scale_step = operation.a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? 1 : 0;
  product.b_scale_step = operation.b_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? 1 : 0;
  return product;
}

bool Aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

}  // namespace

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
  if (const cudaError_t error = EnterCall("cublasLtMatmulAlgoGetHeuristic"); error != cudaSuccess)
    return StatusOf(error);
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const bool given = operation != nullptr && a != nullptr && b != nullptr && c != nullptr && d != nullptr;
  if (!given || preference == nullptr || results == nullptr || returned == nullptr || requested <= 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  *returned = 0;
  const Problem problem{*operation, *a, *b, *c, *d};
  if (const cublasStatus_t status = CheckProblem(problem); status != CUBLAS_STATUS_SUCCESS) return status;
  for (const uint32_t alignment : preference->alignment) {
    if (alignment < 16) return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  for (const Algorithm& algorithm : Advice(problem)) {
    const size_t workspace = WorkspaceOf(algorithm, problem);
    const bool reduced = algorithm.splits <= 1 || (preference->reduction_mask & algorithm.reduction) != 0;
    if (*returned == requested || !reduced || workspace > preference->workspace_bytes_max) continue;
    results[(*returned)++] = {Wrap(algorithm), workspace, CUBLAS_STATUS_SUCCESS, 1.0f, {}};
  }
  return *returned > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoGetIds(cublasLtHandle_t, cublasComputeType_t, cudaDataType_t, cudaDataType_t,
                                        cudaDataType_t, cudaDataType_t, cudaDataType_t, int requested, int ids[],
                                        int* returned) {
  if (ids == nullptr || returned == nullptr || requested <= 0) return CUBLAS_STATUS_INVALID_VALUE;
  *returned = 0;
  for (const int id : {kPlain, kStreamK}) {
    if (*returned < requested) ids[(*returned)++] = id;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t, cublasComputeType_t, cudaDataType_t, cudaDataType_t,
                                      cudaDataType_t, cudaDataType_t, cudaDataType_t, int id,
                                      cublasLtMatmulAlgo_t* algorithm) {
  if (algorithm == nullptr || (id != kPlain && id != kStreamK)) return CUBLAS_STATUS_INVALID_VALUE;
  *algorithm = Wrap(Make(id, CUBLASLT_MATMUL_TILE_64x64, 1));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result) {
  const Problem problem{*operation, *a, *b, *c, *d};
  cublasStatus_t status = CheckProblem(problem);
  if (status == CUBLAS_STATUS_SUCCESS) status = CheckAlgorithm(Unwrap(*algorithm), problem);
  *result = {};
  result->state = status;
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  result->algo = *algorithm;
  result->workspaceSize = WorkspaceOf(Unwrap(*algorithm), problem);
  result->wavesCount = 1.0f;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCapGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                 cublasLtMatmulAlgoCapAttributes_t attribute, void* value, size_t bytes,
                                                 size_t* written) {
  const bool splits = Unwrap(*algorithm).id == kPlain;
  switch (attribute) {
    case CUBLASLT_ALGO_CAP_SPLITK_SUPPORT:
      return GetField<int32_t>({splits ? 1 : 0}, value, bytes, written);
    case CUBLASLT_ALGO_CAP_REDUCTION_SCHEME_MASK:
      return GetField<uint32_t>({splits ? uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE} : 0u}, value, bytes,
                                written);
    case CUBLASLT_ALGO_CAP_CTA_SWIZZLING_SUPPORT:
      return GetField<uint32_t>({0}, value, bytes, written);
    case CUBLASLT_ALGO_CAP_TILE_IDS:
      return GetField<uint32_t>({CUBLASLT_MATMUL_TILE_64x64, CUBLASLT_MATMUL_TILE_128x128}, value, bytes, written);
    case CUBLASLT_ALGO_CAP_STAGES_IDS:
      return GetField<uint32_t>({CUBLASLT_MATMUL_STAGES_64x4}, value, bytes, written);
    case CUBLASLT_ALGO_CAP_CUSTOM_OPTION_MAX:
      return GetField<int32_t>({0}, value, bytes, written);
    case CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS:
      return GetField<uint64_t>({0}, value, bytes, written);
    default:
      return GetField<uint32_t>({16}, value, bytes, written);  // Alignments.
  }
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* wrapped,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  Algorithm algorithm = Unwrap(*wrapped);
  cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_ALGO_CONFIG_ID:
      break;  // Fixed when the algorithm is made.
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
      status = SetField(&algorithm.tile, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
      status = SetField(&algorithm.splits, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
      status = SetField(&algorithm.reduction, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING:
      status = SetField(&algorithm.swizzle, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION:
      status = SetField(&algorithm.custom, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_STAGES_ID:
      status = SetField(&algorithm.stages, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID:
      status = SetField(&algorithm.inner_shape, value, bytes);
      break;
    case CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID:
      status = SetField(&algorithm.cluster, value, bytes);
      break;
  }
  if (status == CUBLAS_STATUS_SUCCESS) *wrapped = Wrap(algorithm);
  return status;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* wrapped,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    size_t bytes, size_t* written) {
  const Algorithm algorithm = Unwrap(*wrapped);
  switch (attribute) {
    case CUBLASLT_ALGO_CONFIG_ID:
      return GetField<int32_t>({algorithm.id}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
      return GetField<uint32_t>({algorithm.tile}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
      return GetField<int32_t>({algorithm.splits}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
      return GetField<uint32_t>({algorithm.reduction}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING:
      return GetField<uint32_t>({algorithm.swizzle}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION:
      return GetField<uint32_t>({algorithm.custom}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_STAGES_ID:
      return GetField<uint32_t>({algorithm.stages}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID:
      return GetField<uint16_t>({algorithm.inner_shape}, value, bytes, written);
    case CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID:
      return GetField<uint16_t>({algorithm.cluster}, value, bytes, written);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* wrapped, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (const cudaError_t error = EnterCall("cublasLtMatmul"); error != cudaSuccess) return StatusOf(error);
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const Problem problem{*operation, *a_layout, *b_layout, *c_layout, *d_layout};
  if (const cublasStatus_t status = CheckProblem(problem); status != CUBLAS_STATUS_SUCCESS) return status;
  const Algorithm algorithm = wrapped != nullptr ? Unwrap(*wrapped) : Advice(problem)[1];
  if (const cublasStatus_t status = CheckAlgorithm(algorithm, problem); status != CUBLAS_STATUS_SUCCESS) return status;
  if (WorkspaceOf(algorithm, problem) > workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  if (!Aligned({a, b, c, d, workspace})) return CUBLAS_STATUS_NOT_SUPPORTED;
  Product product = MakeProduct(problem, algorithm);
  product.a = View(a, *a_layout);
  product.b = View(b, *b_layout);
  if (operation->transpose_a != CUBLAS_OP_N) product.a = product.a.Transposed();
  if (operation->transpose_b != CUBLAS_OP_N) product.b = product.b.Transposed();
  product.c = View(c, *c_layout);
  product.d = View(d, *d_layout);
  product.partial = static_cast<float*>(workspace);
  const bool on_device = operation->pointer_mode == CUBLASLT_POINTER_MODE_DEVICE;
  if (!on_device) {
    product.alpha = *static_cast<const float*>(alpha);
    product.beta = *static_cast<const float*>(beta);
  }
  return StatusOf(Submit(stream, cudaGraphNodeTypeKernel, [product, on_device, alpha, beta]() mutable {
    if (on_device) {
      product.alpha = *static_cast<const float*>(alpha);
      product.beta = *static_cast<const float*>(beta);
    }
    if (!InBounds(product)) {
      std::fprintf(stderr, "CUDA twin: a matrix product reaches outside of device memory\n");
      BreakContext(cudaErrorIllegalAddress);
      return;
    }
    Multiply(product);
  }));
}
