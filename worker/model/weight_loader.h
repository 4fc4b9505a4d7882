#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {

/// A rectangle of a stored matrix.
struct Band {
  std::string tensor;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_col = 0;
  int64_t cols = 0;
};

/// Reads bands of a checkpoint's tensors into device memory. Requires: CheckCheckpoint() passed. ResourceExhausted:
/// does not fit. DataLoss: the storage fails.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, Ops& ops) : checkpoint_(checkpoint), ops_(ops) {}

  /// Bands of vectors, one after the other, as floats, times `factor`.
  absl::StatusOr<DeviceBuffer> LoadVector(const std::vector<Band>& bands, float factor = 1.0f);
  /// The bands, of equal width, one below the other, and then zeros up to `rows` rows.
  absl::StatusOr<std::unique_ptr<GemmWeight>> LoadMatrix(const std::vector<Band>& bands, int64_t rows, WeightRole role);
  absl::Status LoadExpert(const std::vector<Band>& bands, int32_t expert, ExpertMatrix which, ExpertWeights& experts);
  absl::StatusOr<DeviceBuffer> LoadTable(const Band& band, int64_t rows, ConstMatrix* table);
  /// Of memory that was allocated in one piece.
  void CountDevice(size_t bytes) { device_bytes_ += bytes; }
  size_t device_bytes() const { return device_bytes_; }
  size_t staged_bytes() const { return staged_bytes_; }

 private:
  absl::StatusOr<ConstMatrix> Stage(const std::vector<Band>& bands, int64_t rows);
  absl::Status ReadBand(const StoredTensor& tensor, const Band& band, char* out);
  absl::Status ReadRows(const StoredTensor& tensor, const Band& band, char* out) const;
  void Widen(float (*to_float)(uint16_t));

  const Checkpoint& checkpoint_;
  Ops& ops_;
  std::vector<char> stored_;    // As in the file.
  std::vector<float> widened_;  // 16-bit elements of `stored_`, where floats are wanted.
  size_t device_bytes_ = 0;
  size_t staged_bytes_ = 0;  // As RankBudget counts them.
};

inline Band Vector(const std::string& tensor, int64_t size) { return {tensor, 0, 1, 0, size}; }

/// Rows [first, first + rows) of a part, all columns.
inline Band RowsOf(const TensorPart& part, int64_t first, int64_t rows, int64_t cols) {
  return {part.tensor, part.first_row + first, rows, 0, cols};
}

/// Columns [first, first + cols) of a part's `rows` rows.
inline Band ColumnsOf(const TensorPart& part, int64_t rows, int64_t first, int64_t cols) {
  return {part.tensor, part.first_row, rows, first, cols};
}

}  // namespace quicksilver
