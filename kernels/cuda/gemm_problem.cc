#include "kernels/cuda/gemm_problem.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

cudaDataType_t TypeOf(DType dtype) { return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF; }

cudaDataType_t ElementOf(GemmArithmetic arithmetic) {
  switch (arithmetic) {
    case GemmArithmetic::kF32:
      return CUDA_R_32F;
    case GemmArithmetic::kBf16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_8F_E4M3;
  }
}

absl::Status LibraryStatus(const CublasLtLibrary& library, cublasStatus_t status, absl::string_view call) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string text = absl::StrCat(call, ": ", library.GetStatusString(status));
  switch (status) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      return absl::ResourceExhaustedError(text);
    case CUBLAS_STATUS_NOT_INITIALIZED:
    case CUBLAS_STATUS_INVALID_VALUE:
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return absl::FailedPreconditionError(text);
    default:
      return absl::InternalError(text);
  }
}

/// Destroys with the function of the library that goes with the pointer.
template <typename Handle>
struct Destroyer {
  cublasStatus_t (*destroy)(Handle) = nullptr;
  void operator()(std::remove_pointer_t<Handle>* handle) const { destroy(handle); }
};
template <typename Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer<Handle>>;

/// Operands to ask about. Scaled products need scales even then; nothing is read.
GemmOperands DenseOperands(const GemmShape& shape) {
  alignas(64) static constexpr float kNoScales = 1.0f;
  return {.x_stride = shape.in, .x_scales = &kNoScales, .weight_scales = &kNoScales, .out_stride = shape.out};
}

template <typename Preference, typename Attribute, typename T>
void SetPreference(const CublasLtLibrary& library, Preference preference, Attribute attribute, T value) {
  CHECK(library.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS);
}

absl::StatusOr<Owned<cublasLtMatrixLayout_t>> MakeLayout(const CublasLtLibrary& library, cudaDataType_t type,
                                                         int64_t rows, int64_t cols, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  RETURN_IF_ERROR(LibraryStatus(
      library,
      library.MatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), stride),
      "cublasLtMatrixLayoutCreate"));
  return Owned<cublasLtMatrixLayout_t>(layout, {library.MatrixLayoutDestroy});
}

}  // namespace

bool GemmAlgorithm::operator==(const GemmAlgorithm& other) const {
  return std::memcmp(&choice, &other.choice, sizeof choice) == 0;
}

/// One product as the library wants it told.
struct GemmLibrary::Description {
  Owned<cublasLtMatmulDesc_t> operation;
  Owned<cublasLtMatrixLayout_t> weight;
  Owned<cublasLtMatrixLayout_t> x;
  Owned<cublasLtMatrixLayout_t> out;
};

absl::StatusOr<std::unique_ptr<GemmLibrary>> GemmLibrary::Make(const CublasLtLibrary& library) {
  cublasLtHandle_t handle = nullptr;
  RETURN_IF_ERROR(LibraryStatus(library, library.Create(&handle), "cublasLtCreate"));
  return std::unique_ptr<GemmLibrary>(new GemmLibrary(library, handle));
}

GemmLibrary::~GemmLibrary() { library_.Destroy(handle_); }

absl::StatusOr<GemmLibrary::Description> GemmLibrary::Describe(const GemmShape& shape, int64_t rows,
                                                               const GemmOperands& operands) const {
  cublasLtMatmulDesc_t operation = nullptr;
  RETURN_IF_ERROR(LibraryStatus(library_, library_.MatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                                "cublasLtMatmulDescCreate"));
  Description description;
  description.operation = Owned<cublasLtMatmulDesc_t>(operation, {library_.MatmulDescDestroy});
  absl::Status status;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    status.Update(LibraryStatus(library_, library_.MatmulDescSetAttribute(operation, attribute, &value, sizeof value),
                                absl::StrCat("cublasLtMatmulDescSetAttribute ", static_cast<int>(attribute))));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (shape.arithmetic == GemmArithmetic::kFp8Scaled) {
    const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.weight_scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.x_scales);
  }
  RETURN_IF_ERROR(status);
  const cudaDataType_t element = ElementOf(shape.arithmetic);
  ASSIGN_OR_RETURN(description.weight, MakeLayout(library_, element, shape.in, shape.out, shape.in));
  ASSIGN_OR_RETURN(description.x, MakeLayout(library_, element, shape.in, rows, operands.x_stride));
  ASSIGN_OR_RETURN(description.out, MakeLayout(library_, TypeOf(shape.out_type), shape.out, rows, operands.out_stride));
  return description;
}

std::vector<GemmAlgorithm> GemmLibrary::Advise(const GemmShape& shape, int64_t rows, size_t workspace_bytes_max,
                                               int count) const {
  absl::StatusOr<Description> description = Describe(shape, rows, DenseOperands(shape));
  cublasLtMatmulPreference_t made = nullptr;
  if (!description.ok() || library_.MatmulPreferenceCreate(&made) != CUBLAS_STATUS_SUCCESS) return {};
  const Owned<cublasLtMatmulPreference_t> preference(made, {library_.MatmulPreferenceDestroy});
  SetPreference(library_, made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes_max});
  // Parts of a split sum must not be rounded to bf16 before they are added.
  SetPreference(library_, made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  for (const cublasLtMatmulPreferenceAttributes_t attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    SetPreference(library_, made, attribute, static_cast<uint32_t>(kGemmAlignmentBytes));
  }
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  if (library_.MatmulAlgoGetHeuristic(handle_, description->operation.get(), description->weight.get(),
                                      description->x.get(), description->out.get(), description->out.get(), made, count,
                                      results.data(), &found) != CUBLAS_STATUS_SUCCESS) {
    return {};
  }
  std::vector<GemmAlgorithm> algorithms;
  for (int i = 0; i < found; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
    algorithms.push_back({results[i].algo, results[i].workspaceSize});
  }
  return algorithms;
}

bool GemmLibrary::Supports(const GemmShape& shape, int64_t rows, const GemmAlgorithm& algorithm,
                           size_t workspace_bytes_max) const {
  const absl::StatusOr<Description> description = Describe(shape, rows, DenseOperands(shape));
  if (!description.ok()) return false;
  cublasLtMatmulHeuristicResult_t result = {};
  const cublasStatus_t status =
      library_.MatmulAlgoCheck(handle_, description->operation.get(), description->weight.get(), description->x.get(),
                               description->out.get(), description->out.get(), &algorithm.choice, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_bytes_max;
}

absl::Status GemmLibrary::Multiply(const GemmShape& shape, int64_t rows, const GemmOperands& operands,
                                   const GemmAlgorithm& algorithm, void* workspace, size_t workspace_bytes,
                                   cudaStream_t stream) const {
  ASSIGN_OR_RETURN(const Description description, Describe(shape, rows, operands));
  const float one = 1.0f, zero = 0.0f;
  const cublasStatus_t status =
      library_.Matmul(handle_, description.operation.get(), &one, operands.weight, description.weight.get(), operands.x,
                      description.x.get(), &zero, operands.out, description.out.get(), operands.out,
                      description.out.get(), &algorithm.choice, workspace, workspace_bytes, stream);
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return LibraryStatus(library_, status,
                       absl::StrCat("cublasLtMatmul of ", rows, " rows, ", shape.in, " to ", shape.out, " features"));
}

std::string GemmLibrary::version() const {
  const size_t version = library_.GetVersion();
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

template <typename T>
long long GemmLibrary::Setting(const GemmAlgorithm& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) const {
  T value = 0;
  size_t written = 0;
  const cublasStatus_t status =
      library_.MatmulAlgoConfigGetAttribute(&algorithm.choice, attribute, &value, sizeof value, &written);
  return status == CUBLAS_STATUS_SUCCESS ? static_cast<long long>(value) : -1;
}

std::string GemmLibrary::Describe(const GemmAlgorithm& algorithm) const {
  return absl::StrCat("algorithm ", Setting<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_ID), ", tile ",
                      Setting<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID), ", stages ",
                      Setting<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID), ", cluster ",
                      Setting<uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID), ", split ",
                      Setting<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM), ", custom ",
                      Setting<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION));
}

}  // namespace quicksilver
