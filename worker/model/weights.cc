#include "worker/model/weights.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/host_float.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

/// A rectangle of a stored matrix.
struct Band {
  std::string tensor;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_col = 0;
  int64_t cols = 0;
};

class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, Ops& ops) : checkpoint_(checkpoint), ops_(ops) {}

  absl::StatusOr<DeviceBuffer> LoadGain(const std::string& name);
  /// The bands, of equal width, one below the other, and then zeros up to `rows` rows.
  absl::StatusOr<std::unique_ptr<GemmWeight>> LoadMatrix(const std::vector<Band>& bands, int64_t rows, WeightRole role);
  absl::StatusOr<DeviceBuffer> LoadTable(const Band& band, int64_t rows, ConstMatrix* table);
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

// Reads from the page cache are copies, which one thread makes slower than a device takes them.
constexpr int64_t kReaders = 4;
constexpr size_t kBytesAReaderMin = 4 << 20;

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

absl::StatusOr<DeviceBuffer> WeightLoader::LoadGain(const std::string& name) {
  const StoredTensor* tensor = checkpoint_.Find(name);
  CHECK(tensor != nullptr && tensor->shape.size() == 1);
  const int64_t cols = tensor->shape[0];
  ASSIGN_OR_RETURN(const ConstMatrix staged, Stage({{name, 0, 1, 0, cols}}, 1));
  if (staged.dtype == DType::kBf16) Widen(Bf16ToFloat);
  const void* gains = staged.dtype == DType::kBf16 ? widened_.data() : staged.data;
  const size_t bytes = static_cast<size_t>(cols) * sizeof(float);
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops_.Allocate(bytes));
  ops_.Upload(gains, buffer.data(), bytes);
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

absl::StatusOr<LayerWeights> LoadLayer(const ModelSpec& spec, const Shard& shard, int64_t index, WeightLoader& loader) {
  const LayerTensorNames names = NamesOfLayer(spec, index);
  const int64_t hd = spec.head_size;
  const Band q{names.q, shard.first_head * hd, shard.heads * hd, 0, spec.hidden};
  const Band k{names.k, shard.first_kv_head * hd, shard.kv_heads * hd, 0, spec.hidden};
  const Band v{names.v, shard.first_kv_head * hd, shard.kv_heads * hd, 0, spec.hidden};
  const Band out{names.attention_out, 0, spec.hidden, shard.first_head * hd, shard.heads * hd};
  const Band gate{names.gate, shard.first_mlp, shard.mlp, 0, spec.hidden};
  const Band up{names.up, shard.first_mlp, shard.mlp, 0, spec.hidden};
  const Band down{names.down, 0, spec.hidden, shard.first_mlp, shard.mlp};
  LayerWeights layer;
  ASSIGN_OR_RETURN(layer.attention_norm, loader.LoadGain(names.attention_norm));
  ASSIGN_OR_RETURN(layer.qkv, loader.LoadMatrix({q, k, v}, q.rows + k.rows + v.rows, WeightRole::kLayer));
  if (spec.head_norms) {
    ASSIGN_OR_RETURN(layer.q_norm, loader.LoadGain(names.q_norm));
    ASSIGN_OR_RETURN(layer.k_norm, loader.LoadGain(names.k_norm));
  }
  ASSIGN_OR_RETURN(layer.out, loader.LoadMatrix({out}, out.rows, WeightRole::kLayer));
  ASSIGN_OR_RETURN(layer.mlp_norm, loader.LoadGain(names.mlp_norm));
  ASSIGN_OR_RETURN(layer.gate_up, loader.LoadMatrix({gate, up}, gate.rows + up.rows, WeightRole::kLayer));
  ASSIGN_OR_RETURN(layer.down, loader.LoadMatrix({down}, down.rows, WeightRole::kLayer));
  return layer;
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const ModelSpec& spec, const Shard& shard, const Checkpoint& checkpoint,
                                         Ops& ops, const LoadProgress& progress) {
  const std::vector<ExpectedTensor> tensors = ExpectedTensors(spec);
  const std::string& embedding = tensors.front().name;
  const std::string& lm_head = spec.tied ? embedding : tensors.back().name;
  const std::string& final_norm = tensors[tensors.size() - (spec.tied ? 1 : 2)].name;
  const size_t total = BudgetOf(spec, shard, ops.activation_dtype()).weight_bytes;
  WeightLoader loader(checkpoint, ops);
  const auto report = [&](size_t done) {
    if (progress) progress(done, total);
  };

  ModelWeights weights;
  const bool whole = shard.embedding_replicated;
  weights.embedding_first_id = whole ? 0 : shard.first_id;
  const Band table{embedding, weights.embedding_first_id, whole ? spec.vocabulary : shard.stored_rows, 0, spec.hidden};
  ASSIGN_OR_RETURN(weights.embedding_memory,
                   loader.LoadTable(table, whole ? spec.vocabulary : shard.vocabulary_rows, &weights.embedding));
  for (int64_t i = 0; i < spec.layers; ++i) {
    ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(spec, shard, i, loader));
    weights.layers.push_back(std::move(layer));
    report(loader.staged_bytes());
  }
  ASSIGN_OR_RETURN(weights.final_norm, loader.LoadGain(final_norm));
  const Band head{lm_head, shard.first_id, shard.stored_rows, 0, spec.hidden};
  ASSIGN_OR_RETURN(weights.lm_head, loader.LoadMatrix({head}, shard.vocabulary_rows, WeightRole::kHead));
  weights.bytes = loader.device_bytes();
  report(loader.staged_bytes());
  return weights;
}

}  // namespace quicksilver
