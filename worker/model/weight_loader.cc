#include "worker/model/weight_loader.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/host_float.h"

namespace quicksilver {
namespace {

// Reads from the page cache are copies, which one thread makes slower than a device takes them.
constexpr int64_t kReaders = 4;
constexpr size_t kBytesAReaderMin = 4 << 20;

}  // namespace

absl::Status WeightLoader::ReadBand(const StoredTensor& tensor, const Band& band, char* out) {
  const size_t row_bytes = static_cast<size_t>(band.cols) * StoredBytes(tensor.type);
  const int64_t parts =
      std::clamp<int64_t>(static_cast<int64_t>(band.rows * row_bytes / kBytesAReaderMin), 1, kReaders);
  std::vector<std::thread> readers;
  std::vector<absl::Status> results(static_cast<size_t>(parts));
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = band.rows * i / parts, end = band.rows * (i + 1) / parts;
    const auto read = [this, &tensor, &result = results[static_cast<size_t>(i)], out = out + first * row_bytes,
                       part = Band{band.tensor, band.first_row + first, end - first, band.first_col, band.cols}] {
      result = ReadRows(tensor, part, out);
    };
    try {
      if (i + 1 < parts) readers.emplace_back(read);
    } catch (const std::system_error&) {  // No thread to be had.
      read();
    }
    if (i + 1 == parts) read();
  }
  for (std::thread& reader : readers) reader.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

absl::Status WeightLoader::ReadRows(const StoredTensor& tensor, const Band& band, char* out) const {
  const uint64_t element = StoredBytes(tensor.type);
  const uint64_t width = static_cast<uint64_t>(tensor.shape.back());
  const size_t row_bytes = static_cast<size_t>(band.cols) * element;
  if (band.cols == tensor.shape.back()) {
    return checkpoint_.Read(tensor, band.first_row * width * element, band.rows * row_bytes, out);
  }
  for (int64_t row = 0; row < band.rows; ++row) {
    const uint64_t offset = ((band.first_row + row) * width + band.first_col) * element;
    RETURN_IF_ERROR(checkpoint_.Read(tensor, offset, row_bytes, out + row * row_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<ConstMatrix> WeightLoader::Stage(const std::vector<Band>& bands, int64_t rows) {
  const int64_t cols = bands.front().cols;
  const StoredTensor* first = checkpoint_.Find(bands.front().tensor);
  CHECK(first != nullptr);
  const size_t row_bytes = static_cast<size_t>(cols) * StoredBytes(first->type);
  stored_.resize(rows * row_bytes);
  int64_t done = 0;
  for (const Band& band : bands) {
    if (band.rows == 0) continue;  // A rank past the end of a padded vocabulary.
    const StoredTensor* tensor = checkpoint_.Find(band.tensor);
    CHECK(tensor != nullptr && tensor->type == first->type && band.cols == cols && done + band.rows <= rows);
    RETURN_IF_ERROR(ReadBand(*tensor, band, stored_.data() + done * row_bytes));
    done += band.rows;
  }
  std::fill(stored_.begin() + static_cast<ptrdiff_t>(done * row_bytes), stored_.end(), 0);
  if (first->type != StoredType::kF16) {
    return ConstMatrix(stored_.data(), rows, cols, cols, first->type == StoredType::kF32 ? DType::kF32 : DType::kBf16);
  }
  Widen(F16ToFloat);
  return ConstMatrix(widened_.data(), rows, cols, cols, DType::kF32);
}

void WeightLoader::Widen(float (*to_float)(uint16_t)) {
  widened_.resize(stored_.size() / sizeof(uint16_t));
  for (size_t i = 0; i < widened_.size(); ++i) {
    uint16_t element;
    std::memcpy(&element, stored_.data() + i * sizeof(element), sizeof(element));
    widened_[i] = to_float(element);
  }
}

absl::StatusOr<DeviceBuffer> WeightLoader::LoadVector(const std::vector<Band>& bands, float factor) {
  std::vector<float> values;
  for (const Band& band : bands) {
    const StoredTensor* tensor = checkpoint_.Find(band.tensor);
    CHECK(tensor != nullptr && tensor->shape.size() == 1);
    ASSIGN_OR_RETURN(const ConstMatrix staged, Stage({band}, 1));
    if (staged.dtype == DType::kBf16) Widen(Bf16ToFloat);
    const auto* floats = static_cast<const float*>(staged.dtype == DType::kBf16 ? widened_.data() : staged.data);
    values.insert(values.end(), floats, floats + band.cols);
  }
  for (float& value : values) value *= factor;
  const size_t bytes = values.size() * sizeof(float);
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops_.Allocate(bytes));
  ops_.Upload(values.data(), buffer.data(), bytes);
  device_bytes_ += bytes;
  staged_bytes_ += bytes;
  return buffer;
}

absl::StatusOr<std::unique_ptr<GemmWeight>> WeightLoader::LoadMatrix(const std::vector<Band>& bands, int64_t rows,
                                                                     WeightRole role) {
  ASSIGN_OR_RETURN(const ConstMatrix staged, Stage(bands, rows));
  ASSIGN_OR_RETURN(std::unique_ptr<GemmWeight> weight, ops_.PrepareWeight(staged, role));
  device_bytes_ += weight->bytes();
  staged_bytes_ += static_cast<size_t>(staged.rows * staged.cols) * ElementBytes(staged.dtype);
  return weight;
}

absl::Status WeightLoader::LoadExpert(const std::vector<Band>& bands, int32_t expert, ExpertMatrix which,
                                      ExpertWeights& experts) {
  int64_t rows = 0;
  for (const Band& band : bands) rows += band.rows;
  ASSIGN_OR_RETURN(const ConstMatrix staged, Stage(bands, rows));
  staged_bytes_ += static_cast<size_t>(staged.rows * staged.cols) * ElementBytes(staged.dtype);
  return experts.Load(expert, which, staged);
}

absl::StatusOr<DeviceBuffer> WeightLoader::LoadTable(const Band& band, int64_t rows, ConstMatrix* table) {
  ASSIGN_OR_RETURN(const ConstMatrix staged, Stage({band}, rows));
  const size_t bytes = static_cast<size_t>(staged.rows * staged.cols) * ElementBytes(staged.dtype);
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops_.Allocate(bytes));
  ops_.Upload(staged.data, buffer.data(), bytes);
  device_bytes_ += bytes;
  staged_bytes_ += bytes;
  *table = ConstMatrix(buffer.data(), staged.rows, staged.cols, staged.cols, staged.dtype);
  return buffer;
}

}  // namespace quicksilver
