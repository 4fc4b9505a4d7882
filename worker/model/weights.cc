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

  /// Bands of vectors, one after the other, as floats.
  absl::StatusOr<DeviceBuffer> LoadVector(const std::vector<Band>& bands);
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

absl::StatusOr<DeviceBuffer> WeightLoader::LoadVector(const std::vector<Band>& bands) {
  std::vector<float> values;
  for (const Band& band : bands) {
    const StoredTensor* tensor = checkpoint_.Find(band.tensor);
    CHECK(tensor != nullptr && tensor->shape.size() == 1);
    ASSIGN_OR_RETURN(const ConstMatrix staged, Stage({band}, 1));
    if (staged.dtype == DType::kBf16) Widen(Bf16ToFloat);
    const auto* floats = static_cast<const float*>(staged.dtype == DType::kBf16 ? widened_.data() : staged.data);
    values.insert(values.end(), floats, floats + band.cols);
  }
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

Band Vector(const std::string& tensor, int64_t size) { return {tensor, 0, 1, 0, size}; }

/// Rows [first, first + rows) of a part, all columns.
Band RowsOf(const TensorPart& part, int64_t first, int64_t rows, int64_t cols) {
  return {part.tensor, part.first_row + first, rows, 0, cols};
}

/// Columns [first, first + cols) of a part's `rows` rows.
Band ColumnsOf(const TensorPart& part, int64_t rows, int64_t first, int64_t cols) {
  return {part.tensor, part.first_row, rows, first, cols};
}

/// Each rank holds whole heads: their rows of q, k and v, their columns of the output's projection.
absl::Status LoadAttention(const ModelSpec& spec, const Shard& shard, const LayerTensors& tensors, WeightLoader& loader,
                           LayerWeights& layer) {
  const int64_t hd = spec.head_size;
  const int64_t first_q = shard.first_head * hd, first_kv = shard.first_kv_head * hd;
  const int64_t q_rows = shard.heads * hd, kv_rows = shard.kv_heads * hd;
  ASSIGN_OR_RETURN(layer.attention_norm, loader.LoadVector({Vector(tensors.attention_norm, spec.hidden)}));
  ASSIGN_OR_RETURN(layer.qkv, loader.LoadMatrix({RowsOf(tensors.q, first_q, q_rows, spec.hidden),
                                                 RowsOf(tensors.k, first_kv, kv_rows, spec.hidden),
                                                 RowsOf(tensors.v, first_kv, kv_rows, spec.hidden)},
                                                q_rows + 2 * kv_rows, WeightRole::kLayer));
  if (spec.qkv_bias) {
    ASSIGN_OR_RETURN(layer.qkv_bias, loader.LoadVector({{tensors.q_bias, 0, 1, first_q, q_rows},
                                                        {tensors.k_bias, 0, 1, first_kv, kv_rows},
                                                        {tensors.v_bias, 0, 1, first_kv, kv_rows}}));
  }
  if (spec.head_norms) {
    ASSIGN_OR_RETURN(layer.q_norm, loader.LoadVector({Vector(tensors.q_norm, hd)}));
    ASSIGN_OR_RETURN(layer.k_norm, loader.LoadVector({Vector(tensors.k_norm, hd)}));
  }
  const Band out{tensors.attention_out, 0, spec.hidden, first_q, q_rows};
  ASSIGN_OR_RETURN(layer.out, loader.LoadMatrix({out}, out.rows, WeightRole::kLayer));
  return absl::OkStatus();
}

/// Columns [first, first + width) of a dense MLP or of the shared expert.
absl::Status LoadMlp(const ModelSpec& spec, const MlpParts& parts, int64_t first, int64_t width, WeightLoader& loader,
                     LayerWeights& layer) {
  ASSIGN_OR_RETURN(layer.gate_up, loader.LoadMatrix({RowsOf(parts.gate, first, width, spec.hidden),
                                                     RowsOf(parts.up, first, width, spec.hidden)},
                                                    2 * width, WeightRole::kLayer));
  ASSIGN_OR_RETURN(layer.down, loader.LoadMatrix({ColumnsOf(parts.down, spec.hidden, first, width)}, spec.hidden,
                                                 WeightRole::kLayer));
  return absl::OkStatus();
}

/// The router is kept as precise as the LM head: small differences between its logits decide which experts are chosen.
absl::StatusOr<std::unique_ptr<MoeWeights>> LoadMoe(const ModelSpec& spec, const Shard& shard, int64_t index,
                                                    const LayerTensors& tensors, WeightLoader& loader, Ops& ops) {
  const int64_t experts = spec.moe.experts;
  auto moe = std::make_unique<MoeWeights>();
  ASSIGN_OR_RETURN(moe->router,
                   loader.LoadMatrix({{tensors.router, 0, experts, 0, spec.hidden}}, experts, WeightRole::kHead));
  if (spec.moe.expert_bias) {
    ASSIGN_OR_RETURN(moe->expert_bias, loader.LoadVector({Vector(tensors.expert_bias, experts)}));
  }
  ASSIGN_OR_RETURN(moe->experts, ops.PrepareExperts({.first = static_cast<int32_t>(shard.first_expert),
                                                     .count = static_cast<int32_t>(shard.experts),
                                                     .hidden = spec.hidden,
                                                     .mlp = shard.expert_mlp}));
  for (int64_t expert = shard.first_expert; expert < shard.first_expert + shard.experts; ++expert) {
    const MlpParts parts = TensorsOfExpert(spec, index, expert);
    const int64_t first = shard.first_expert_mlp, width = shard.expert_mlp;
    const auto number = static_cast<int32_t>(expert);
    RETURN_IF_ERROR(
        loader.LoadExpert({RowsOf(parts.gate, first, width, spec.hidden), RowsOf(parts.up, first, width, spec.hidden)},
                          number, ExpertMatrix::kGateUp, *moe->experts));
    RETURN_IF_ERROR(loader.LoadExpert({ColumnsOf(parts.down, spec.hidden, first, width)}, number, ExpertMatrix::kDown,
                                      *moe->experts));
  }
  loader.CountDevice(moe->experts->bytes());
  return moe;
}

absl::StatusOr<LayerWeights> LoadLayer(const ModelSpec& spec, const Shard& shard, int64_t index, WeightLoader& loader,
                                       Ops& ops) {
  const LayerTensors tensors = TensorsOfLayer(spec, index);
  LayerWeights layer;
  RETURN_IF_ERROR(LoadAttention(spec, shard, tensors, loader, layer));
  ASSIGN_OR_RETURN(layer.mlp_norm, loader.LoadVector({Vector(tensors.mlp_norm, spec.hidden)}));
  if (!HasExperts(spec, index)) {
    RETURN_IF_ERROR(LoadMlp(spec, tensors.mlp, shard.first_mlp, shard.mlp, loader, layer));
    return layer;
  }
  if (shard.shared_mlp > 0) {
    RETURN_IF_ERROR(LoadMlp(spec, tensors.mlp, shard.first_shared_mlp, shard.shared_mlp, loader, layer));
  }
  ASSIGN_OR_RETURN(layer.moe, LoadMoe(spec, shard, index, tensors, loader, ops));
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
    ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(spec, shard, i, loader, ops));
    weights.layers.push_back(std::move(layer));
    report(loader.staged_bytes());
  }
  ASSIGN_OR_RETURN(weights.final_norm, loader.LoadVector({Vector(final_norm, spec.hidden)}));
  const Band head{lm_head, shard.first_id, shard.stored_rows, 0, spec.hidden};
  ASSIGN_OR_RETURN(weights.lm_head, loader.LoadMatrix({head}, shard.vocabulary_rows, WeightRole::kHead));
  weights.bytes = loader.device_bytes();
  report(loader.staged_bytes());
  return weights;
}

}  // namespace quicksilver
