#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/gemm_kernels.h"

namespace quicksilver {
namespace {

constexpr int64_t kStagingUnit = 256;
/// A rest of fewer rows is padded, not cut: reading the weight once more would cost more than zero rows.
constexpr int64_t kCutRowsMin = 256;

bool IsAligned(const ConstMatrix& m) {
  const int64_t element = static_cast<int64_t>(ElementBytes(m.dtype));
  return reinterpret_cast<uintptr_t>(m.data) % kGemmAlignmentBytes == 0 &&
         m.stride * element % kGemmAlignmentBytes == 0;
}

Matrix RowsOf(const Matrix& m, int64_t first, int64_t rows) {
  char* const data = static_cast<char*>(m.data) + first * m.stride * static_cast<int64_t>(ElementBytes(m.dtype));
  return {data, rows, m.cols, m.stride, m.dtype};
}

ConstMatrix RowsOf(const ConstMatrix& m, int64_t first, int64_t rows) {
  const char* const data =
      static_cast<const char*>(m.data) + first * m.stride * static_cast<int64_t>(ElementBytes(m.dtype));
  return {data, rows, m.cols, m.stride, m.dtype};
}

bool IsE4m3(GemmArithmetic arithmetic) {
  return arithmetic == GemmArithmetic::kFp8 || arithmetic == GemmArithmetic::kFp8Scaled;
}

}  // namespace

/// One product, as asked for.
struct CudaGemm::Product {
  GemmShape shape;  // `out` is padded.
  const CudaGemmWeight* weight = nullptr;
  int64_t first_out = 0;
  ConstMatrix x;
  Matrix out;
  bool direct = false;  // The library can write to `out` and, except with e4m3, read x.
};

/// The next rows of a product.
struct CudaGemm::Part {
  int64_t rows = 0;         // Of the product.
  int64_t padded_rows = 0;  // What the library multiplies.
  bool staged = false;      // x and out are copied.
  GemmAlgorithm algorithm;
};

CudaGemm::CudaGemm(const CudaGemmOptions& options, Staging& staging, cudaStream_t stream)
    : options_(options),
      staging_(staging),
      stream_(stream),
      layer_arithmetic_(options.activation == DType::kF32 ? GemmArithmetic::kF32 : GemmArithmetic::kBf16),
      head_arithmetic_(layer_arithmetic_) {}

CudaGemm::~CudaGemm() = default;

absl::StatusOr<std::unique_ptr<CudaGemm>> CudaGemm::Make(const CublasLtLibrary& library, const CudaGemmOptions& options,
                                                         Staging& staging, cudaStream_t stream) {
  if (options.fp8_layers && options.activation != DType::kBf16) {
    return absl::InvalidArgumentError("FP8 layers need bf16 activations; f32 is for exact comparisons");
  }
  CHECK(!options.row_buckets.empty() && std::is_sorted(options.row_buckets.begin(), options.row_buckets.end()));
  CHECK(std::find(options.row_buckets.begin(), options.row_buckets.end(), options.plans.small_rows) !=
        options.row_buckets.end());
  std::unique_ptr<CudaGemm> gemm(new CudaGemm(options, staging, stream));
  ASSIGN_OR_RETURN(gemm->library_, GemmLibrary::Make(library));
  ASSIGN_OR_RETURN(gemm->plans_, GemmPlans::Make(*gemm->library_, options.plans));
  ASSIGN_OR_RETURN(gemm->workspace_, AllocateDeviceMemory(options.plans.workspace_bytes, "matrix products"));
  if (options.fp8_layers) {
    ASSIGN_OR_RETURN(const bool scales, LibraryScalesFp8(*gemm->library_, stream));
    gemm->layer_arithmetic_ = scales ? GemmArithmetic::kFp8Scaled : GemmArithmetic::kFp8;
  }
  return gemm;
}

std::string CudaGemm::name() const {
  std::string layers;
  if (layer_arithmetic_ == GemmArithmetic::kFp8Scaled) layers = ", layers e4m3 scaled by the library";
  if (layer_arithmetic_ == GemmArithmetic::kFp8) layers = ", layers e4m3 scaled afterwards";
  if (layer_arithmetic_ == GemmArithmetic::kFp8Scaled && weights_scaled_afterwards_ > 0) {
    absl::StrAppend(&layers, " (", weights_scaled_by_library_, " weights) and afterwards (", weights_scaled_afterwards_,
                    ")");
  }
  return absl::StrCat("cuBLASLt ", library_->version(), options_.activation == DType::kF32 ? ", f32" : ", bf16", layers,
                      options_.plans.deterministic ? ", deterministic" : ", fast");
}

GemmPlansReport CudaGemm::report() const {
  GemmPlansReport report = plans_->report();
  report.weights_scaled_by_library = weights_scaled_by_library_;
  report.weights_scaled_afterwards = weights_scaled_afterwards_;
  return report;
}

/// The library may scale rows of some sizes only.
absl::StatusOr<GemmArithmetic> CudaGemm::ArithmeticOf(const ConstMatrix& matrix, WeightRole role) {
  const GemmArithmetic wanted = role == WeightRole::kHead ? head_arithmetic_ : layer_arithmetic_;
  if (wanted != GemmArithmetic::kFp8Scaled) return wanted;
  const GemmShape shape = {.arithmetic = wanted,
                           .out_type = options_.activation,
                           .out = RoundUpTo(matrix.rows, kGemmOutUnit),
                           .in = RoundUpTo(matrix.cols, kGemmAlignmentBytes / GemmElementBytes(wanted))};
  auto known = library_scales_.find(shape);
  if (known == library_scales_.end()) {
    ASSIGN_OR_RETURN(const bool scales, LibraryScales(shape));
    known = library_scales_.emplace(shape, scales).first;
  }
  return known->second ? GemmArithmetic::kFp8Scaled : GemmArithmetic::kFp8;
}

/// Whether it does so for all of a weight, in small and in large batches. Not only the advice counts: what is advised
/// may be refused.
absl::StatusOr<bool> CudaGemm::LibraryScales(const GemmShape& shape) {
  if (!plans_->Supports(shape)) return false;
  std::vector<int64_t> batches = {options_.plans.small_rows};
  // What is chosen in deterministic mode suits large batches, too, or these are cut.
  if (!options_.plans.deterministic) batches.push_back(options_.plans.large_rows);
  for (const int64_t rows : batches) {
    probe_memory_held_ = true;
    const absl::StatusOr<const GemmPlan*> plan = plans_->Plan(shape, shape.out, rows);
    RETURN_IF_ERROR(Recording().status());
    if (absl::IsFailedPrecondition(plan.status())) return false;
    RETURN_IF_ERROR(plan.status());
    if (*plan == nullptr) return false;
  }
  return true;
}

absl::StatusOr<std::unique_ptr<GemmWeight>> CudaGemm::Prepare(ConstMatrix matrix, WeightRole role) {
  ASSIGN_OR_RETURN(const GemmArithmetic arithmetic, ArithmeticOf(matrix, role));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaGemmWeight> weight, LoadGemmWeight(matrix, arithmetic, staging_, raw_, stream_));
  const DType out_type = role == WeightRole::kHead ? DType::kF32 : options_.activation;
  const Matrix out = {nullptr, 1, weight->out_features(), weight->padded_out(), out_type};
  const ConstMatrix x(nullptr, 1, weight->in_features(), weight->padded_in(), options_.activation);
  const GemmShape shape = Describe(x, *weight, 0, out).shape;
  if (role == WeightRole::kLayer) layer_shapes_.insert(shape);
  const int64_t rows = options_.plans.small_rows;
  if (options_.plans.deterministic && !plans_->Has(shape, shape.out, rows)) {
    probe_memory_held_ = true;
    RETURN_IF_ERROR(plans_->Plan(shape, shape.out, rows).status());
    RETURN_IF_ERROR(Recording().status());
  }
  if (arithmetic == GemmArithmetic::kFp8Scaled) ++weights_scaled_by_library_;
  if (arithmetic == GemmArithmetic::kFp8) ++weights_scaled_afterwards_;
  return weight;
}

absl::Status CudaGemm::EndRehearsal() {
  rehearsing_ = false;
  return Recording().status();  // Gives back what trying out has taken.
}

absl::StatusOr<bool> CudaGemm::Recording() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  RETURN_IF_ERROR(CudaStatus(cudaStreamIsCapturing(stream_, &status), "cudaStreamIsCapturing"));
  const bool recording = status != cudaStreamCaptureStatusNone;
  if (!recording && probe_memory_held_) plans_->ReleaseProbeMemory();
  probe_memory_held_ = probe_memory_held_ && recording;
  return recording;
}

absl::Status CudaGemm::Tune(absl::Span<const int64_t> rows, const std::function<void(int64_t, int64_t)>& progress) {
  const int64_t of = static_cast<int64_t>(rows.size() * layer_shapes_.size());
  int64_t done = 0;
  for (const GemmShape& shape : layer_shapes_) {
    for (const int64_t count : rows) {
      CHECK(count > 0);
      if (count <= options_.row_buckets.back()) RETURN_IF_ERROR(plans_->Plan(shape, shape.out, count).status());
      if (progress) progress(++done, of);
    }
  }
  ASSIGN_OR_RETURN(const bool recording, Recording());
  CHECK(!recording);
  plans_->ReleaseProbeMemory();
  return absl::OkStatus();
}

CudaGemm::Product CudaGemm::Describe(ConstMatrix x, const CudaGemmWeight& weight, int64_t first_out, Matrix out) const {
  Product product;
  product.weight = &weight;
  product.first_out = first_out;
  product.x = x;
  product.out = out;
  product.shape = {.arithmetic = weight.arithmetic(),
                   .out_type = weight.arithmetic() == GemmArithmetic::kFp8 ? DType::kF32 : out.dtype,
                   .out = RoundUpTo(out.cols, kGemmOutUnit),
                   .in = weight.padded_in()};
  const bool out_direct = IsAligned(out) && out.cols == product.shape.out;
  const bool x_direct = IsE4m3(weight.arithmetic()) || (IsAligned(x) && x.cols == weight.padded_in());
  product.direct = x_direct && out_direct && weight.arithmetic() != GemmArithmetic::kFp8;
  return product;
}

absl::Status CudaGemm::Multiply(ConstMatrix x, const GemmWeight& weight, Matrix out) {
  CHECK(out.cols == weight.out_features());
  return MultiplyInParts(Describe(x, static_cast<const CudaGemmWeight&>(weight), 0, out));
}

absl::Status CudaGemm::MultiplyRows(ConstMatrix x, const GemmWeight& weight, int64_t first_out, Matrix out) {
  CHECK(first_out % kGemmOutUnit == 0 && first_out + out.cols <= weight.out_features());
  const int64_t padded = RoundUpTo(out.cols, kGemmOutUnit);
  if (out.stride >= padded) out.cols = padded;
  return MultiplyInParts(Describe(x, static_cast<const CudaGemmWeight&>(weight), first_out, out));
}

absl::Status CudaGemm::MultiplyInParts(const Product& product) {
  CHECK(product.x.rows == product.out.rows && product.x.cols == product.weight->in_features() &&
        product.x.dtype == options_.activation &&
        (product.out.dtype == options_.activation || product.out.dtype == DType::kF32));
  ASSIGN_OR_RETURN(const bool recording, Recording());
  for (int64_t first = 0; first < product.x.rows;) {
    ASSIGN_OR_RETURN(const Part part, NextPart(product, product.x.rows - first, recording || rehearsing_));
    RETURN_IF_ERROR(Run(product, first, part));
    first += part.rows;
  }
  return absl::OkStatus();
}

/// Device memory that a row takes of `rows_`.
int64_t CudaGemm::StagedRowBytes(const Product& product, bool staged) const {
  const GemmShape& shape = product.shape;
  const bool e4m3 = IsE4m3(shape.arithmetic);
  int64_t bytes = 0;
  if (e4m3 || staged) bytes += shape.in * GemmElementBytes(shape.arithmetic);
  if (e4m3) bytes += static_cast<int64_t>(sizeof(float));
  if (staged) bytes += shape.out * static_cast<int64_t>(ElementBytes(shape.out_type));
  return bytes;
}

absl::StatusOr<bool> CudaGemm::Fits(const Product& product, int64_t rows, bool staged, Part& part) {
  const int64_t staged_bytes_max = static_cast<int64_t>(options_.staging_bytes_max) - 3 * kStagingUnit;
  if (rows * StagedRowBytes(product, staged) > staged_bytes_max) return false;
  const int64_t whole_out = product.weight->padded_out();
  if (!plans_->Has(product.shape, whole_out, rows)) probe_memory_held_ = true;
  ASSIGN_OR_RETURN(const GemmPlan* const plan, plans_->Plan(product.shape, whole_out, rows));
  if (plan == nullptr) return false;
  part.padded_rows = rows;
  part.staged = staged;
  part.algorithm = plan->algorithm;
  return true;
}

absl::StatusOr<CudaGemm::Part> CudaGemm::NextPart(const Product& product, int64_t rows, bool exact) {
  const std::vector<int64_t>& buckets = options_.row_buckets;
  Part part;
  const auto try_rows = [&](int64_t padded_rows, bool staged) -> absl::StatusOr<bool> {
    part.rows = std::min(rows, padded_rows);
    return Fits(product, padded_rows, staged, part);
  };
  const bool planned = exact || std::find(buckets.begin(), buckets.end(), rows) != buckets.end() ||
                       plans_->Has(product.shape, product.weight->padded_out(), rows);
  if (product.direct && planned && rows <= buckets.back()) {
    ASSIGN_OR_RETURN(const bool fits, try_rows(rows, /*staged=*/false));
    if (fits) return part;
  }
  for (auto bucket = buckets.rbegin(); product.direct && bucket != buckets.rend() && *bucket >= kCutRowsMin; ++bucket) {
    if (*bucket > rows) continue;
    ASSIGN_OR_RETURN(const bool fits, try_rows(*bucket, /*staged=*/false));
    if (fits) return part;
  }
  for (const int64_t bucket : buckets) {
    if (bucket < rows) continue;
    ASSIGN_OR_RETURN(const bool fits, try_rows(bucket, /*staged=*/true));
    if (fits) return part;
  }
  for (auto bucket = buckets.rbegin(); bucket != buckets.rend(); ++bucket) {
    if (*bucket > rows) continue;
    ASSIGN_OR_RETURN(const bool fits, try_rows(*bucket, /*staged=*/!product.direct));
    if (fits) return part;
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "a product of ", product.shape.in, " to ", product.shape.out, " features fits no batch of ", buckets.front(),
      " to ", buckets.back(), " rows into ", options_.staging_bytes_max, " bytes of staging memory"));
}

absl::Status CudaGemm::Run(const Product& product, int64_t first_row, const Part& part) {
  const GemmShape& shape = product.shape;
  const bool e4m3 = IsE4m3(shape.arithmetic);
  const int64_t rows = part.padded_rows;
  const int64_t x_bytes = e4m3 || part.staged ? rows * shape.in * GemmElementBytes(shape.arithmetic) : 0;
  const int64_t scales_at = RoundUpTo(x_bytes, kStagingUnit);
  const int64_t out_at = RoundUpTo(scales_at + (e4m3 ? rows * static_cast<int64_t>(sizeof(float)) : 0), kStagingUnit);
  char* memory = nullptr;
  if (const int64_t row_bytes = StagedRowBytes(product, part.staged); row_bytes > 0) {
    ASSIGN_OR_RETURN(void* const got, rows_.Get(static_cast<size_t>(rows * row_bytes + 3 * kStagingUnit)));
    memory = static_cast<char*>(got);
  }
  const ConstMatrix x = RowsOf(product.x, first_row, part.rows);
  const Matrix out = RowsOf(product.out, first_row, part.rows);
  float* const x_scales = e4m3 ? reinterpret_cast<float*>(memory + scales_at) : nullptr;
  const float* const weight_scales = e4m3 ? product.weight->scales() + product.first_out : nullptr;
  if (e4m3) {
    const QuantizedRows quantized = {.values = memory, .scales = x_scales, .rows = rows, .cols = shape.in};
    RETURN_IF_ERROR(CudaStatus(LaunchQuantizeRows(x, quantized, stream_), "QuantizeRows"));
  } else if (part.staged) {
    RETURN_IF_ERROR(
        CudaStatus(LaunchConvertRows(x, {memory, rows, shape.in, shape.in, product.x.dtype}, stream_), "ConvertRows"));
  }
  const GemmOperands operands = {.x = x_bytes > 0 ? memory : x.data,
                                 .x_stride = x_bytes > 0 ? shape.in : x.stride,
                                 .x_scales = x_scales,
                                 .weight = product.weight->row(product.first_out),
                                 .weight_scales = weight_scales,
                                 .out = part.staged ? memory + out_at : out.data,
                                 .out_stride = part.staged ? shape.out : out.stride};
  RETURN_IF_ERROR(library_->Multiply(shape, rows, operands, part.algorithm, workspace_.get(),
                                     options_.plans.workspace_bytes, stream_));
  if (!part.staged) return absl::OkStatus();
  const ConstMatrix products(operands.out, part.rows, shape.out, shape.out, shape.out_type);
  if (shape.arithmetic == GemmArithmetic::kFp8) {
    return CudaStatus(LaunchScaleProducts(products, x_scales, weight_scales, out, stream_), "ScaleProducts");
  }
  return CudaStatus(LaunchConvertRows(products, out, stream_), "ConvertRows");
}

}  // namespace quicksilver
