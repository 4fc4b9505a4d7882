#include "kernels/cuda/moe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/gemm_kernels.h"
#include "kernels/cuda/gemm_weight.h"
#include "kernels/cuda/moe_kernels.h"

namespace quicksilver {
namespace {

ConstMatrix RowsOf(const ConstMatrix& m, int64_t first, int64_t rows) {
  const char* const data =
      static_cast<const char*>(m.data) + first * m.stride * static_cast<int64_t>(ElementBytes(m.dtype));
  return {data, rows, m.cols, m.stride, m.dtype};
}

/// Whether the kernels may read the rows where they lie.
bool IsReadable(const ConstMatrix& x) {
  if (x.dtype == DType::kF32) return true;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0 && x.cols % 8 == 0;
}

/// Deals out parts of one allocation, each aligned to 256 bytes; without one, counts how much it would take.
class Parts {
 public:
  explicit Parts(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  void Take(int64_t count, size_t element_bytes, T** part) {
    if (memory_ != nullptr) *part = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * element_bytes + 255) / 256 * 256;
  }
  size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  size_t bytes_ = 0;
};

}  // namespace

class CudaExperts::Weights final : public ExpertWeights {
 public:
  Weights(const ExpertShape& shape, CudaExperts& experts) : shape_(shape), experts_(experts) {}

  absl::Status Allocate() {
    ASSIGN_OR_RETURN(memory_, AllocateDeviceMemory(bytes(), absl::StrCat(shape_.count, " experts of ", shape_.mlp,
                                                                         " x ", shape_.hidden)));
    return CudaStatus(cudaMemsetAsync(memory_.get(), 0, bytes(), experts_.stream_), "cudaMemsetAsync");
  }

  const ExpertShape& shape() const override { return shape_; }
  size_t bytes() const override {
    return static_cast<size_t>(shape_.count) * (MatrixBytes(ExpertMatrix::kGateUp) + MatrixBytes(ExpertMatrix::kDown));
  }

  absl::Status Load(int32_t expert, ExpertMatrix which, ConstMatrix host) override {
    CHECK(expert >= shape_.first && expert < shape_.first + shape_.count);
    CHECK(host.rows == rows(which) && host.cols == (which == ExpertMatrix::kDown ? shape_.mlp : shape_.hidden));
    cudaSetDevice(experts_.device_);
    char* const to = matrices(which) + static_cast<size_t>(expert - shape_.first) * MatrixBytes(which);
    const Matrix matrix = {to, rows(which), columns(which), columns(which), experts_.activation_};
    return ForUploadedRows(host, experts_.staging_, experts_.raw_, [&](const ConstMatrix& part, int64_t first) {
      const size_t row_bytes = static_cast<size_t>(matrix.cols) * ElementBytes(matrix.dtype);
      const Matrix band = {to + static_cast<size_t>(first) * row_bytes, part.rows, matrix.cols, matrix.stride,
                           matrix.dtype};
      return CudaStatus(LaunchConvertRows(part, band, experts_.stream_), "ConvertRows");
    });
  }

  char* matrices(ExpertMatrix which) const {
    char* const memory = static_cast<char*>(memory_.get());
    return which == ExpertMatrix::kGateUp
               ? memory
               : memory + static_cast<size_t>(shape_.count) * MatrixBytes(ExpertMatrix::kGateUp);
  }

 private:
  int64_t rows(ExpertMatrix which) const { return which == ExpertMatrix::kDown ? shape_.hidden : 2 * shape_.mlp; }
  int64_t columns(ExpertMatrix which) const {
    return ExpertColumns(which == ExpertMatrix::kDown ? shape_.mlp : shape_.hidden, experts_.activation_);
  }
  size_t MatrixBytes(ExpertMatrix which) const {
    return static_cast<size_t>(rows(which) * columns(which)) * ElementBytes(experts_.activation_);
  }

  const ExpertShape shape_;
  CudaExperts& experts_;
  CudaMemory memory_;  // Of all experts the gate and up rows, then of all experts the down rows.
};

absl::StatusOr<std::unique_ptr<ExpertWeights>> CudaExperts::Prepare(const ExpertShape& shape) {
  CHECK(shape.count >= 0 && shape.hidden > 0 && shape.mlp > 0);
  auto weights = std::make_unique<Weights>(shape, *this);
  RETURN_IF_ERROR(weights->Allocate());
  return std::unique_ptr<ExpertWeights>(std::move(weights));
}

absl::Status CudaExperts::Run(const CudaExpertCall& call) {
  const ExpertShape& shape = call.weights.shape();
  CHECK(call.x.cols == shape.hidden && call.out.cols == shape.hidden && call.x.rows == call.out.rows && call.k >= 1);
  CHECK(call.x.dtype == activation_ && call.out.dtype == activation_);
  for (int64_t first = 0; first < call.x.rows; first += kPassRows) {
    RETURN_IF_ERROR(RunPass(call, first, std::min(kPassRows, call.x.rows - first)));
  }
  return absl::OkStatus();
}

absl::Status CudaExperts::RunPass(const CudaExpertCall& call, int64_t first, int64_t rows) {
  const auto& weights = static_cast<const Weights&>(call.weights);
  const ConstMatrix x = RowsOf(call.x, first, rows), out = RowsOf(call.out, first, rows);
  const int64_t choices = rows * call.k, columns = ExpertColumns(x.cols, activation_);
  ExpertProblem problem = {.shape = weights.shape(),
                           .activation = call.activation,
                           .k = call.k,
                           .experts = call.experts + first * call.k,
                           .expert_weights = call.expert_weights + first * call.k,
                           .gate_up = weights.matrices(ExpertMatrix::kGateUp),
                           .down = weights.matrices(ExpertMatrix::kDown),
                           .x = x,
                           .add = call.add,
                           .out = {const_cast<void*>(out.data), rows, out.cols, out.stride, out.dtype}};
  void* copy = nullptr;
  const auto lay_out = [&](void* memory) {
    Parts parts(memory);
    const size_t element = ElementBytes(activation_);
    parts.Take(problem.shape.count, sizeof(int32_t), &problem.counts);
    parts.Take(problem.shape.count * rows, sizeof(int32_t), &problem.lists);
    parts.Take(choices * ExpertColumns(problem.shape.mlp, activation_), element,
               reinterpret_cast<char**>(&problem.inner));
    parts.Take(choices * columns, element, reinterpret_cast<char**>(&problem.outputs));
    parts.Take(IsReadable(x) ? 0 : rows * columns, element, reinterpret_cast<char**>(&copy));
    return parts.bytes();
  };
  ASSIGN_OR_RETURN(void* const memory, memory_.Get(lay_out(nullptr)));
  lay_out(memory);
  if (!IsReadable(x)) {
    const Matrix padded = {copy, rows, columns, columns, activation_};
    RETURN_IF_ERROR(CudaStatus(LaunchConvertRows(x, padded, stream_), "a copy of the experts' input"));
    problem.x = padded;
  }
  if (problem.shape.count > 0) {
    RETURN_IF_ERROR(CudaStatus(LaunchListExperts(problem, stream_), "lists of the experts' rows"));
    RETURN_IF_ERROR(CudaStatus(LaunchExpertGateUp(problem, stream_), "gates and ups of experts"));
    RETURN_IF_ERROR(CudaStatus(LaunchExpertDown(problem, stream_), "downs of experts"));
  }
  return CudaStatus(LaunchSumExperts(problem, stream_), "sums of experts");
}

}  // namespace quicksilver
