#include "kernels/cuda/gemm_weight.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/gemm_kernels.h"

namespace quicksilver {
namespace {

/// Of a matrix on its way. The copy of the next part waits for the conversion of this one: both together take no longer
/// than reading the file.
constexpr int64_t kRawBytes = int64_t{16} << 20;

bool IsE4m3(GemmArithmetic arithmetic) {
  return arithmetic == GemmArithmetic::kFp8 || arithmetic == GemmArithmetic::kFp8Scaled;
}

int64_t BytesOfRows(const ConstMatrix& m, int64_t rows) {
  return rows * m.cols * static_cast<int64_t>(ElementBytes(m.dtype));
}

ConstMatrix RowsOf(const ConstMatrix& m, int64_t first, int64_t rows) {
  const char* const data =
      static_cast<const char*>(m.data) + first * m.stride * static_cast<int64_t>(ElementBytes(m.dtype));
  return {data, rows, m.cols, m.stride, m.dtype};
}

/// rows: the weight's first_row and following, on the device. Also writes the padding behind the last row.
absl::Status Round(const ConstMatrix& rows, int64_t first_row, const CudaGemmWeight& weight, cudaStream_t stream) {
  const bool last = first_row + rows.rows == weight.out_features();
  const int64_t padded_rows = last ? weight.padded_out() - first_row : rows.rows;
  char* const to = weight.row(first_row);
  if (IsE4m3(weight.arithmetic())) {
    const QuantizedRows quantized = {
        .values = to, .scales = weight.scales() + first_row, .rows = padded_rows, .cols = weight.padded_in()};
    return CudaStatus(LaunchQuantizeRows(rows, quantized, stream), "QuantizeRows");
  }
  const DType dtype = weight.arithmetic() == GemmArithmetic::kF32 ? DType::kF32 : DType::kBf16;
  const Matrix rounded = {to, padded_rows, weight.padded_in(), weight.padded_in(), dtype};
  return CudaStatus(LaunchConvertRows(rows, rounded, stream), "ConvertRows");
}

absl::Status UploadRows(const ConstMatrix& rows, void* to, Staging& staging) {
  if (rows.stride == rows.cols) {
    return CudaStatus(staging.Upload(rows.data, to, static_cast<size_t>(BytesOfRows(rows, rows.rows))),
                      "upload of a weight");
  }
  const size_t row_bytes = static_cast<size_t>(BytesOfRows(rows, 1));
  for (int64_t r = 0; r < rows.rows; ++r) {
    RETURN_IF_ERROR(CudaStatus(
        staging.Upload(RowsOf(rows, r, 1).data, static_cast<char*>(to) + static_cast<size_t>(r) * row_bytes, row_bytes),
        "upload of a weight"));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> IsDeviceMemory(const void* data) {
  cudaPointerAttributes attributes = {};
  RETURN_IF_ERROR(CudaStatus(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes"));
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

}  // namespace

CudaGemmWeight::CudaGemmWeight(int64_t out, int64_t in, GemmArithmetic arithmetic, CudaMemory memory)
    : out_(out), in_(in), arithmetic_(arithmetic), memory_(std::move(memory)) {}

float* CudaGemmWeight::scales() const {
  CHECK(IsE4m3(arithmetic_));
  return reinterpret_cast<float*>(row(padded_out()));
}

size_t CudaGemmWeight::BytesOf(int64_t out, int64_t in, GemmArithmetic arithmetic) {
  const int64_t element = GemmElementBytes(arithmetic), rows = RoundUpTo(out, kGemmOutUnit);
  const int64_t row_bytes = RoundUpTo(in * element, kGemmAlignmentBytes);
  return static_cast<size_t>(rows * row_bytes + (IsE4m3(arithmetic) ? rows * static_cast<int64_t>(sizeof(float)) : 0));
}

absl::Status ForUploadedRows(ConstMatrix matrix, Staging& staging, DeviceWorkspace& raw,
                             absl::FunctionRef<absl::Status(const ConstMatrix& rows, int64_t first_row)> take) {
  ASSIGN_OR_RETURN(const bool on_device, IsDeviceMemory(matrix.data));
  if (on_device) return take(matrix, 0);
  const int64_t rows_at_once = std::clamp<int64_t>(kRawBytes / BytesOfRows(matrix, 1), 1, matrix.rows);
  ASSIGN_OR_RETURN(void* const buffer, raw.Get(static_cast<size_t>(BytesOfRows(matrix, rows_at_once))));
  for (int64_t first = 0; first < matrix.rows; first += rows_at_once) {
    const ConstMatrix part = RowsOf(matrix, first, std::min(rows_at_once, matrix.rows - first));
    RETURN_IF_ERROR(UploadRows(part, buffer, staging));
    RETURN_IF_ERROR(take({buffer, part.rows, part.cols, part.cols, part.dtype}, first));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CudaGemmWeight>> LoadGemmWeight(ConstMatrix matrix, GemmArithmetic arithmetic,
                                                               Staging& staging, DeviceWorkspace& raw,
                                                               cudaStream_t stream) {
  CHECK(matrix.rows > 0 && matrix.cols > 0 && matrix.stride >= matrix.cols);
  const size_t bytes = CudaGemmWeight::BytesOf(matrix.rows, matrix.cols, arithmetic);
  ASSIGN_OR_RETURN(CudaMemory memory,
                   AllocateDeviceMemory(bytes, absl::StrCat("a weight of ", matrix.rows, " x ", matrix.cols)));
  auto weight = std::make_unique<CudaGemmWeight>(matrix.rows, matrix.cols, arithmetic, std::move(memory));
  RETURN_IF_ERROR(ForUploadedRows(matrix, staging, raw, [&](const ConstMatrix& rows, int64_t first_row) {
    return Round(rows, first_row, *weight, stream);
  }));
  return weight;
}

}  // namespace quicksilver
