#include "worker/model/transformer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/gemma_transformer.h"
#include "worker/model/routed_experts.h"
#include "worker/model/sharding.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

/// Room for the largest step, made once.
struct Activations {
  std::vector<DeviceBuffer> memory;
  Matrix hidden;    // [N, H] the residual stream
  Matrix normed;    // [N, H]
  Matrix qkv;       // [N, (nh + 2 nkv) hd / tp]
  Matrix mixed;     // [N, nh hd / tp]
  Matrix partial;   // [N, H] this rank's share of a sum
  Matrix gate_up;   // [N, 2 I / tp], I the wider one of dense MLPs and shared experts
  Matrix gated;     // [N, I / tp]
  Matrix gathered;  // [R, H] rows whose logits are wanted

  Activations Top(int64_t rows) const {
    return {{},
            TopRows(hidden, rows),
            TopRows(normed, rows),
            TopRows(qkv, rows),
            TopRows(mixed, rows),
            TopRows(partial, rows),
            TopRows(gate_up, rows),
            TopRows(gated, rows),
            TopRows(gathered, rows)};
  }
};

/// The same memory as rows of `cols` columns, at most those of `m`.
Matrix Narrowed(const Matrix& m, int64_t cols) { return {m.data, m.rows, cols, cols, m.dtype}; }

const float* Floats(const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); }

class PreNormTransformer final : public Transformer {
 public:
  PreNormTransformer(const ModelSpec& spec, const Shard& shard, Ops& ops, Communicator& ranks, int32_t rows_max,
                     int32_t pages, int32_t page_size)
      : spec_(spec),
        shard_(shard),
        rope_{.theta = spec.rope_theta,
              .rotary_size = static_cast<int32_t>(spec.rotary_size),
              .full_precision = spec.rope_full_precision},
        ops_(ops),
        ranks_(ranks),
        rows_max_(rows_max),
        pages_(pages),
        page_size_(page_size) {}

  absl::Status Load(const Checkpoint& checkpoint, const LoadProgress& progress);

  const ModelSpec& spec() const override { return spec_; }
  int32_t page_size() const override { return page_size_; }
  int32_t pages() const override { return pages_; }
  int64_t shard_rows() const override { return shard_.vocabulary_rows; }
  size_t weight_bytes() const override { return weights_.bytes; }
  size_t kv_bytes() const override { return kv_bytes_; }
  void SetObserver(Observer observer) override { observer_ = std::move(observer); }

  void Forward(const int32_t* ids, const StepLayout& layout) override;
  void Candidates(const int32_t* rows, int32_t rows_count, const CandidateBatch& batch, int32_t top_count,
                  Candidate* out, TopLogit* top) override;
  void Logits(const int32_t* rows, int32_t rows_count, Matrix out) override;

 private:
  absl::Status Allocate(int64_t rows, int64_t cols, std::vector<DeviceBuffer>& memory, Matrix& matrix);
  absl::Status AllocateActivations();
  absl::Status AllocateKv();
  void RunEmbedding(const int32_t* ids, const Activations& a);
  void RunAttention(const LayerWeights& weights, const KvLayer& kv, const StepLayout& layout, const Activations& a);
  void RunMlp(const LayerWeights& weights, const StepLayout& layout, const DeviceBuffer& next_norm,
              const Activations& a);
  void AddToResidual(const DeviceBuffer& next_norm, const Activations& a);
  Matrix GatherFinal(const int32_t* rows, int32_t rows_count);
  void Observe(const std::string& name, ConstMatrix hidden) {
    if (observer_) observer_(name, hidden);
  }

  const ModelSpec spec_;
  const Shard shard_;
  const RopeParameters rope_;
  Ops& ops_;
  Communicator& ranks_;
  const int32_t rows_max_;
  const int32_t pages_;
  const int32_t page_size_;

  ModelWeights weights_;
  Activations activations_;
  RoutedExperts experts_;
  std::vector<DeviceBuffer> kv_memory_;
  std::vector<KvLayer> kv_;
  size_t kv_bytes_ = 0;
  Observer observer_;
};

// N rows in, N rows of the residual stream out; the final norm of the last Forward stays in `normed`.
void PreNormTransformer::Forward(const int32_t* ids, const StepLayout& layout) {
  CHECK(layout.rows <= rows_max_ && layout.page_size == page_size_);
  if (layout.rows == 0) return;
  const Activations a = activations_.Top(layout.rows);
  ops_.BeginStep(layout);
  RunEmbedding(ids, a);
  Observe("embedding", a.hidden);
  ops_.RmsNorm(a.hidden, Floats(weights_.layers[0].attention_norm), spec_.norm_epsilon, a.normed);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const bool last = i + 1 == weights_.layers.size();
    RunAttention(weights_.layers[i], kv_[i], layout, a);
    RunMlp(weights_.layers[i], layout, last ? weights_.final_norm : weights_.layers[i + 1].attention_norm, a);
    if (observer_) Observe(absl::StrCat("after_layer", i), a.hidden);
  }
  Observe("final_norm", a.normed);
}

// A rank that holds a share of the vocabulary contributes zeros for the ids of others.
void PreNormTransformer::RunEmbedding(const int32_t* ids, const Activations& a) {
  ops_.Embed(ids, weights_.embedding, weights_.embedding_first_id, a.hidden);
  if (!shard_.embedding_replicated) ranks_.AllReduceSum(a.hidden);
}

// From the normed rows. Each rank holds nh/tp heads, so its output is a partial sum of the layer's.
void PreNormTransformer::RunAttention(const LayerWeights& weights, const KvLayer& kv, const StepLayout& layout,
                                      const Activations& a) {
  const auto heads = static_cast<int32_t>(shard_.heads);
  const auto kv_heads = static_cast<int32_t>(shard_.kv_heads);
  const Matrix q = ColumnBand(a.qkv, 0, shard_.heads * spec_.head_size);
  HeadTransform transform;
  transform.rope = rope_;
  if (spec_.head_norms) {
    transform.q_gain = Floats(weights.q_norm);
    transform.k_gain = Floats(weights.k_norm);
    transform.epsilon = spec_.norm_epsilon;
  }
  ops_.Gemm(a.normed, *weights.qkv, a.qkv);  // [N, H] -> [N, (nh + 2 nkv) hd / tp]
  if (spec_.qkv_bias) ops_.AddBias(Floats(weights.qkv_bias), a.qkv);
  ops_.RotateAndCache(layout, transform, heads, kv_heads, kv, a.qkv);
  ops_.Attention(layout, q, heads, kv_heads, AttentionRule(), kv, a.mixed);
  ops_.Gemm(a.mixed, *weights.out, a.partial);  // [N, nh hd / tp] -> [N, H]
  AddToResidual(weights.mlp_norm, a);
}

// Each rank holds I/tp columns of an MLP, and its share of routed experts; again a partial sum, of both together.
void PreNormTransformer::RunMlp(const LayerWeights& weights, const StepLayout& layout, const DeviceBuffer& next_norm,
                                const Activations& a) {
  const bool dense = weights.gate_up != nullptr;
  if (dense) {
    const Matrix gate_up = Narrowed(a.gate_up, weights.gate_up->out_features());
    const Matrix gated = Narrowed(a.gated, weights.down->in_features());
    ops_.Gemm(a.normed, *weights.gate_up, gate_up);  // [N, H] -> [N, 2 I / tp]
    ops_.GatedMul(Activation::kSilu, gate_up, gated);
    ops_.Gemm(gated, *weights.down, a.partial);  // [N, I / tp] -> [N, H]
  }
  if (weights.moe != nullptr) experts_.Run(*weights.moe, layout, a.normed, /*add=*/dense, a.partial);
  AddToResidual(next_norm, a);
}

// Sums what the ranks hold of a layer's half onto the residual stream and norms it for the next half.
void PreNormTransformer::AddToResidual(const DeviceBuffer& next_norm, const Activations& a) {
  ranks_.AllReduceSum(a.partial);
  ops_.AddRmsNorm(a.partial, Floats(next_norm), spec_.norm_epsilon, a.hidden, a.normed);
}

Matrix PreNormTransformer::GatherFinal(const int32_t* rows, int32_t rows_count) {
  CHECK(rows_count <= rows_max_);
  const Matrix gathered = TopRows(activations_.gathered, rows_count);
  ops_.GatherRows(activations_.normed, rows, gathered);
  return gathered;
}

void PreNormTransformer::Candidates(const int32_t* rows, int32_t rows_count, const CandidateBatch& batch,
                                    int32_t top_count, Candidate* out, TopLogit* top) {
  if (batch.count == 0) return;
  const VocabularyShard vocabulary{.first_id = static_cast<int32_t>(shard_.first_id),
                                   .vocabulary = static_cast<int32_t>(spec_.tokens),
                                   .mask_id = spec_.mask_id};
  ops_.Candidates(GatherFinal(rows, rows_count), *weights_.lm_head, vocabulary, batch, top_count, out, top);
}

void PreNormTransformer::Logits(const int32_t* rows, int32_t rows_count, Matrix out) {
  if (rows_count == 0) return;
  ops_.Gemm(GatherFinal(rows, rows_count), *weights_.lm_head, out);  // [R, H] -> [R, V / tp]
}

absl::Status PreNormTransformer::Load(const Checkpoint& checkpoint, const LoadProgress& progress) {
  ASSIGN_OR_RETURN(weights_, LoadWeights(spec_, shard_, checkpoint, ops_, progress));
  RETURN_IF_ERROR(AllocateActivations());
  RETURN_IF_ERROR(experts_.Prepare(spec_, ops_, rows_max_));
  RETURN_IF_ERROR(AllocateKv());
  return ops_.Synchronize();
}

absl::Status PreNormTransformer::Allocate(int64_t rows, int64_t cols, std::vector<DeviceBuffer>& memory,
                                          Matrix& matrix) {
  const DType dtype = ops_.activation_dtype();
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops_.Allocate(static_cast<size_t>(rows * cols) * ElementBytes(dtype)));
  matrix = {buffer.data(), rows, cols, cols, dtype};
  memory.push_back(std::move(buffer));
  return absl::OkStatus();
}

absl::Status PreNormTransformer::AllocateActivations() {
  const int64_t query_width = shard_.heads * spec_.head_size;
  const int64_t qkv_width = query_width + 2 * shard_.kv_heads * spec_.head_size;
  const int64_t mlp_width = std::max(shard_.mlp, shard_.shared_mlp);
  Activations& a = activations_;
  RETURN_IF_ERROR(Allocate(rows_max_, spec_.hidden, a.memory, a.hidden));
  RETURN_IF_ERROR(Allocate(rows_max_, spec_.hidden, a.memory, a.normed));
  RETURN_IF_ERROR(Allocate(rows_max_, qkv_width, a.memory, a.qkv));
  RETURN_IF_ERROR(Allocate(rows_max_, query_width, a.memory, a.mixed));
  RETURN_IF_ERROR(Allocate(rows_max_, spec_.hidden, a.memory, a.partial));
  RETURN_IF_ERROR(Allocate(rows_max_, 2 * mlp_width, a.memory, a.gate_up));
  RETURN_IF_ERROR(Allocate(rows_max_, mlp_width, a.memory, a.gated));
  return Allocate(rows_max_, spec_.hidden, a.memory, a.gathered);
}

absl::Status PreNormTransformer::AllocateKv() {
  const int64_t slots = static_cast<int64_t>(pages_) * page_size_;
  const int64_t kv_width = shard_.kv_heads * spec_.head_size;
  for (int64_t i = 0; i < spec_.layers; ++i) {
    KvLayer& layer = kv_.emplace_back();
    RETURN_IF_ERROR(Allocate(slots, kv_width, kv_memory_, layer.keys));
    RETURN_IF_ERROR(Allocate(slots, kv_width, kv_memory_, layer.values));
  }
  for (const DeviceBuffer& buffer : kv_memory_) kv_bytes_ += buffer.bytes();
  return absl::OkStatus();
}

absl::Status CheckPages(const ModelSpec& spec, int32_t pages, int32_t page_size) {
  const int64_t slots = static_cast<int64_t>(pages) * page_size;
  if (pages < 1 || page_size < 1 || slots > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("KV cache: expected 1 to ", INT32_MAX, " positions, found ", pages,
                                                   " pages of ", page_size, " positions"));
  }
  if (spec.grid != BlockGrid::kAbsolute || page_size % spec.block_length == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("KV cache: expected a page size that is a multiple of the block of ",
                                                 spec.block_length, ", found ", page_size));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Load(const ModelSpec& spec, const Checkpoint& checkpoint,
                                                               Ops& ops, Communicator& ranks, int32_t rows_max,
                                                               int32_t pages, int32_t page_size,
                                                               const LoadProgress& progress) {
  CHECK(rows_max >= 1);
  RETURN_IF_ERROR(CheckPages(spec, pages, page_size));
  RETURN_IF_ERROR(CheckCheckpoint(spec, checkpoint, ranks.size()));
  ASSIGN_OR_RETURN(const Shard shard, MakeShard(spec, ranks.rank(), ranks.size()));
  if (spec.gemma.present()) {
    return LoadGemmaTransformer(spec, shard, checkpoint, ops, ranks, rows_max, pages, page_size, progress);
  }
  auto model = std::make_unique<PreNormTransformer>(spec, shard, ops, ranks, rows_max, pages, page_size);
  RETURN_IF_ERROR(model->Load(checkpoint, progress));
  return model;
}

}  // namespace quicksilver
