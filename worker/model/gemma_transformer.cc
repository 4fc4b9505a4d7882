#include "worker/model/gemma_transformer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/model/gemma_tensors.h"
#include "worker/model/gemma_weights.h"

namespace quicksilver {
namespace {

/// Room for the largest step, made once. Widths are those of the layer at hand.
struct Activations {
  Matrix hidden;   // [N, H] the residual stream
  Matrix normed;   // [N, H]
  Matrix partial;  // [2 N, H] this rank's share of one or of two sums
  Matrix qkv;      // [N, (nh + 2 nkv) hd / tp]
  Matrix mixed;    // [N, nh hd / tp]
  Matrix gate_up;  // [N, 2 I / tp]
  Matrix gated;    // [N, I / tp]
  Matrix logits;   // [N, E] the router's, f32
};

const float* Floats(const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); }

/// All gains but the router's are multiplied in float.
NormGain GainOf(const DeviceBuffer& gain) { return {Floats(gain), true}; }

/// The same memory as `rows` dense rows of `cols` columns.
Matrix Reshaped(const Matrix& m, int64_t rows, int64_t cols) { return {m.data, rows, cols, cols, m.dtype}; }

Matrix RowsFrom(const Matrix& m, int64_t first, int64_t rows) {
  const size_t skipped = static_cast<size_t>(first * m.stride) * ElementBytes(m.dtype);
  return {static_cast<char*>(m.data) + skipped, rows, m.cols, m.stride, m.dtype};
}

class GemmaTransformer final : public Transformer {
 public:
  GemmaTransformer(const ModelSpec& spec, const Shard& shard, Ops& ops, Communicator& ranks, int32_t rows_max,
                   int32_t pages, int32_t page_size)
      : spec_(spec),
        shard_(shard),
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
  void Condition(const int32_t* rows, int32_t rows_count, const SoftEmbedBatch& batch, const int32_t* slots) override;
  void Logits(const int32_t* rows, int32_t rows_count, Matrix out) override;

 private:
  /// What differs between sliding and full layers.
  struct Heads {
    int64_t kv_heads = 0;  // Of this rank.
    int64_t head_size = 0;
    RopeParameters rope;
    AttentionRule rule;
    int64_t qkv_width(int64_t heads) const { return (heads + 2 * kv_heads) * head_size; }
  };
  Heads HeadsOf(int64_t layer) const;

  absl::Status Allocate(int64_t rows, int64_t cols, DType dtype, Matrix& matrix);
  absl::Status AllocateActivations();
  absl::Status AllocateKv();
  Activations Top(int64_t rows) const;
  void RunEmbedding(const int32_t* ids, const StepLayout& layout, const Activations& a);
  void RunMlp(const GemmaMlpWeights& weights, const Activations& a, Matrix out);
  void RunAttention(int64_t index, const StepLayout& layout, const Activations& a);
  void RunFeedForward(const GemmaLayerWeights& weights, const StepLayout& layout, const Activations& a);
  VocabularyShard Vocabulary() const;
  Matrix GatherFinal(const int32_t* rows, int32_t rows_count);
  void Observe(const std::string& name, ConstMatrix hidden) {
    if (observer_) observer_(name, hidden);
  }

  const ModelSpec spec_;
  const Shard shard_;
  Ops& ops_;
  Communicator& ranks_;
  const int32_t rows_max_;
  const int32_t pages_;
  const int32_t page_size_;

  GemmaWeights weights_;
  std::vector<DeviceBuffer> memory_;
  Activations activations_;
  Matrix gathered_;                                     // [R, H] rows whose logits are wanted
  Matrix soft_;                                         // [R, H] what these expect
  DeviceBuffer chosen_memory_, chosen_weights_memory_;  // [N, k]
  std::vector<KvLayer> kv_;
  Matrix conditioning_;  // [pages * page_size, H] what a canvas's last step expected, row = slot.
  size_t kv_bytes_ = 0;
  Observer observer_;
};

GemmaTransformer::Heads GemmaTransformer::HeadsOf(int64_t layer) const {
  Heads heads;
  heads.rule.scale = 1.0f;
  if (spec_.gemma.full[static_cast<size_t>(layer)] != 0) {
    heads.kv_heads = shard_.full_kv_heads;
    heads.head_size = spec_.gemma.head_size;
    heads.rope = {.theta = spec_.gemma.rope_theta,
                  .rotary_size = static_cast<int32_t>(spec_.gemma.rotary_size),
                  .proportional = true};
  } else {
    heads.kv_heads = shard_.kv_heads;
    heads.head_size = spec_.head_size;
    heads.rope = {.theta = spec_.rope_theta};
    heads.rule.window = spec_.gemma.window;
  }
  return heads;
}

// N rows in, N rows of the residual stream out; the final norm of the last Forward stays in `normed`.
void GemmaTransformer::Forward(const int32_t* ids, const StepLayout& layout) {
  CHECK(layout.rows <= rows_max_ && layout.page_size == page_size_);
  if (layout.rows == 0) return;
  const Activations a = Top(layout.rows);
  ops_.BeginStep(layout);
  RunEmbedding(ids, layout, a);
  Observe("embedding", a.hidden);
  for (int64_t i = 0; i < spec_.layers; ++i) {
    const GemmaLayerWeights& layer = weights_.layers[static_cast<size_t>(i)];
    RunAttention(i, layout, a);
    RunFeedForward(layer, layout, a);
    ops_.Scale(Floats(layer.layer_scale), a.hidden);
    if (observer_) Observe(absl::StrCat("after_layer", i), a.hidden);
  }
  ops_.RmsNorm(a.hidden, GainOf(weights_.final_norm), spec_.norm_epsilon, a.normed);
  Observe("final_norm", a.normed);
}

// A rank that holds a share of the vocabulary contributes zeros for the ids of others. Rows of a canvas then learn what
// the step before expected of them, which is nothing in the first one.
void GemmaTransformer::RunEmbedding(const int32_t* ids, const StepLayout& layout, const Activations& a) {
  ops_.Embed(ids, weights_.embedding, weights_.embedding_first_id, a.hidden);
  if (!shard_.embedding_replicated) ranks_.AllReduceSum(a.hidden);
  ops_.Scale(Floats(weights_.embedding_scale), a.hidden);
  if (layout.conditioning == nullptr) return;
  const Matrix partial = TopRows(a.partial, layout.rows);
  ops_.Embed(layout.conditioning, conditioning_, 0, a.normed);
  ops_.RmsNorm(a.normed, GainOf(weights_.conditioning_norm), spec_.norm_epsilon, a.normed);
  RunMlp(weights_.conditioning, a, partial);
  ranks_.AllReduceSum(partial);
  ops_.AddRmsNormTo(layout.conditioning, partial, spec_.norm_epsilon, a.hidden);
}

// From the normed rows. Each rank holds I/tp columns, so its output is a partial sum.
void GemmaTransformer::RunMlp(const GemmaMlpWeights& weights, const Activations& a, Matrix out) {
  ops_.Gemm(a.normed, *weights.gate_up, a.gate_up);  // [N, H] -> [N, 2 I / tp]
  ops_.GatedMul(Activation::kGeluTanh, a.gate_up, a.gated);
  ops_.Gemm(a.gated, *weights.down, out);  // [N, I / tp] -> [N, H]
}

// Each rank holds nh/tp heads; the norm behind the attention needs the whole sum.
void GemmaTransformer::RunAttention(int64_t index, const StepLayout& layout, const Activations& a) {
  const GemmaLayerWeights& weights = weights_.layers[static_cast<size_t>(index)];
  const KvLayer& kv = kv_[static_cast<size_t>(index)];
  const Heads heads = HeadsOf(index);
  const auto query_heads = static_cast<int32_t>(shard_.heads), kv_heads = static_cast<int32_t>(heads.kv_heads);
  const Matrix qkv = Reshaped(a.qkv, layout.rows, heads.qkv_width(shard_.heads));
  const Matrix mixed = Reshaped(a.mixed, layout.rows, shard_.heads * heads.head_size);
  const Matrix partial = TopRows(a.partial, layout.rows);
  HeadTransform transform;
  transform.q_gain = Floats(weights.q_norm);
  transform.k_gain = Floats(weights.k_norm);
  transform.epsilon = spec_.norm_epsilon;
  transform.norm_values = true;
  transform.float_gain = true;
  transform.rope = heads.rope;
  ops_.RmsNorm(a.hidden, GainOf(weights.attention_norm), spec_.norm_epsilon, a.normed);
  ops_.Gemm(a.normed, *weights.qkv, qkv);  // [N, H] -> [N, (nh + 2 nkv) hd / tp]
  ops_.RotateAndCache(layout, transform, query_heads, kv_heads, kv, qkv);
  ops_.Attention(layout, ColumnBand(qkv, 0, mixed.cols), query_heads, kv_heads, heads.rule, kv, mixed);
  ops_.Gemm(mixed, *weights.out, partial);  // [N, nh hd / tp] -> [N, H]
  ranks_.AllReduceSum(partial);
  ops_.AddNormed(partial, GainOf(weights.post_attention_norm), spec_.norm_epsilon, a.hidden);
}

// A dense MLP and routed experts side by side; their sums meet in one all-reduce. The router reads the stream itself.
void GemmaTransformer::RunFeedForward(const GemmaLayerWeights& weights, const StepLayout& layout,
                                      const Activations& a) {
  const float epsilon = spec_.norm_epsilon;
  const Matrix dense = TopRows(a.partial, layout.rows), mixed = RowsFrom(a.partial, layout.rows, layout.rows);
  RoutingRule rule = spec_.moe.routing;
  rule.expert_scale = Floats(weights.expert_scale);
  auto* const chosen = static_cast<int32_t*>(chosen_memory_.data());
  auto* const chosen_weights = static_cast<float*>(chosen_weights_memory_.data());
  ops_.RmsNorm(a.hidden, GainOf(weights.mlp_norm), epsilon, a.normed);
  RunMlp(weights.mlp, a, dense);
  ops_.RmsNorm(a.hidden, Floats(weights.router_gain), epsilon, a.normed);
  ops_.Gemm(a.normed, *weights.moe.router, a.logits);  // [N, H] -> [N, E]
  ops_.Route(layout, a.logits, rule, chosen, chosen_weights);
  ops_.RmsNorm(a.hidden, GainOf(weights.expert_norm), epsilon, a.normed);
  ops_.ExpertMlp(a.normed, *weights.moe.experts, Activation::kGeluTanh, chosen, chosen_weights, rule.chosen,
                 /*add=*/false, mixed);
  ranks_.AllReduceSum(a.partial);
  ops_.RmsNorm(dense, GainOf(weights.post_mlp_norm), epsilon, a.normed);
  ops_.AddNormed(mixed, GainOf(weights.post_expert_norm), epsilon, a.normed);
  ops_.AddNormed(a.normed, GainOf(weights.post_norm), epsilon, a.hidden);
}

VocabularyShard GemmaTransformer::Vocabulary() const {
  return {.first_id = static_cast<int32_t>(shard_.first_id),
          .vocabulary = static_cast<int32_t>(spec_.tokens),
          .mask_id = spec_.mask_id,
          .soft_cap = spec_.gemma.soft_cap};
}

Matrix GemmaTransformer::GatherFinal(const int32_t* rows, int32_t rows_count) {
  CHECK(rows_count <= rows_max_);
  const Matrix gathered = TopRows(gathered_, rows_count);
  ops_.GatherRows(activations_.normed, rows, gathered);
  return gathered;
}

void GemmaTransformer::Candidates(const int32_t* rows, int32_t rows_count, const CandidateBatch& batch,
                                  int32_t top_count, Candidate* out, TopLogit* top) {
  if (batch.count == 0) return;
  ops_.Candidates(GatherFinal(rows, rows_count), *weights_.lm_head, Vocabulary(), batch, top_count, out, top);
}

// Each rank holds a share of the vocabulary, so its output is a partial sum.
void GemmaTransformer::Condition(const int32_t* rows, int32_t rows_count, const SoftEmbedBatch& batch,
                                 const int32_t* slots) {
  if (batch.count == 0) return;
  CHECK(batch.count <= rows_max_);
  const Matrix soft = TopRows(soft_, batch.count);
  ConstMatrix table = weights_.embedding;
  const int64_t skipped = shard_.first_id - weights_.embedding_first_id;
  table.data =
      static_cast<const char*>(table.data) + static_cast<size_t>(skipped * table.stride) * ElementBytes(table.dtype);
  table.rows = shard_.stored_rows;
  ops_.SoftEmbed(GatherFinal(rows, rows_count), *weights_.lm_head, table, Vocabulary(), batch, soft);
  ranks_.AllReduceSum(soft);
  ops_.Scale(Floats(weights_.embedding_scale), soft);
  ops_.ScatterRows(soft, slots, conditioning_);
}

void GemmaTransformer::Logits(const int32_t* rows, int32_t rows_count, Matrix out) {
  if (rows_count == 0) return;
  ops_.Gemm(GatherFinal(rows, rows_count), *weights_.lm_head, out);  // [R, H] -> [R, V / tp]
}

Activations GemmaTransformer::Top(int64_t rows) const {
  const Activations& a = activations_;
  return {TopRows(a.hidden, rows), TopRows(a.normed, rows),  TopRows(a.partial, 2 * rows), TopRows(a.qkv, rows),
          TopRows(a.mixed, rows),  TopRows(a.gate_up, rows), TopRows(a.gated, rows),       TopRows(a.logits, rows)};
}

absl::Status GemmaTransformer::Load(const Checkpoint& checkpoint, const LoadProgress& progress) {
  const std::vector<StoredTensor>& stored = checkpoint.tensors();
  const auto ignored = std::count_if(stored.begin(), stored.end(),
                                     [&](const StoredTensor& tensor) { return IsIgnoredByGemma(spec_, tensor.name); });
  if (ignored > 0) {
    LogInfo("tensors that are not of the text model are ignored: images are not served", {{"tensors", ignored}});
  }
  ASSIGN_OR_RETURN(weights_, LoadGemmaWeights(spec_, shard_, checkpoint, ops_, progress));
  RETURN_IF_ERROR(AllocateActivations());
  RETURN_IF_ERROR(AllocateKv());
  return ops_.Synchronize();
}

absl::Status GemmaTransformer::Allocate(int64_t rows, int64_t cols, DType dtype, Matrix& matrix) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops_.Allocate(static_cast<size_t>(rows * cols) * ElementBytes(dtype)));
  matrix = {buffer.data(), rows, cols, cols, dtype};
  memory_.push_back(std::move(buffer));
  return absl::OkStatus();
}

absl::Status GemmaTransformer::AllocateActivations() {
  const DType dtype = ops_.activation_dtype();
  const int64_t H = spec_.hidden, mlp = shard_.shared_mlp;
  int64_t qkv_width = 0, query_width = 0;
  for (int64_t i = 0; i < spec_.layers; ++i) {
    qkv_width = std::max(qkv_width, HeadsOf(i).qkv_width(shard_.heads));
    query_width = std::max(query_width, shard_.heads * HeadsOf(i).head_size);
  }
  Activations& a = activations_;
  RETURN_IF_ERROR(Allocate(rows_max_, H, dtype, a.hidden));
  RETURN_IF_ERROR(Allocate(rows_max_, H, dtype, a.normed));
  RETURN_IF_ERROR(Allocate(int64_t{2} * rows_max_, H, dtype, a.partial));
  RETURN_IF_ERROR(Allocate(rows_max_, qkv_width, dtype, a.qkv));
  RETURN_IF_ERROR(Allocate(rows_max_, query_width, dtype, a.mixed));
  RETURN_IF_ERROR(Allocate(rows_max_, 2 * mlp, dtype, a.gate_up));
  RETURN_IF_ERROR(Allocate(rows_max_, mlp, dtype, a.gated));
  RETURN_IF_ERROR(Allocate(rows_max_, spec_.moe.experts, DType::kF32, a.logits));
  RETURN_IF_ERROR(Allocate(rows_max_, H, dtype, gathered_));
  RETURN_IF_ERROR(Allocate(rows_max_, H, dtype, soft_));
  const size_t choices = static_cast<size_t>(rows_max_) * static_cast<size_t>(spec_.moe.routing.chosen);
  ASSIGN_OR_RETURN(chosen_memory_, ops_.Allocate(choices * sizeof(int32_t)));
  ASSIGN_OR_RETURN(chosen_weights_memory_, ops_.Allocate(choices * sizeof(float)));
  return absl::OkStatus();
}

absl::Status GemmaTransformer::AllocateKv() {
  const int64_t slots = static_cast<int64_t>(pages_) * page_size_;
  const DType dtype = ops_.activation_dtype();
  const size_t before = memory_.size();
  for (int64_t i = 0; i < spec_.layers; ++i) {
    const Heads heads = HeadsOf(i);
    KvLayer& layer = kv_.emplace_back();
    RETURN_IF_ERROR(Allocate(slots, heads.kv_heads * heads.head_size, dtype, layer.keys));
    RETURN_IF_ERROR(Allocate(slots, heads.kv_heads * heads.head_size, dtype, layer.values));
  }
  RETURN_IF_ERROR(Allocate(slots, spec_.hidden, dtype, conditioning_));
  for (size_t i = before; i < memory_.size(); ++i) kv_bytes_ += memory_[i].bytes();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> LoadGemmaTransformer(const ModelSpec& spec, const Shard& shard,
                                                                  const Checkpoint& checkpoint, Ops& ops,
                                                                  Communicator& ranks, int32_t rows_max, int32_t pages,
                                                                  int32_t page_size, const LoadProgress& progress) {
  auto model = std::make_unique<GemmaTransformer>(spec, shard, ops, ranks, rows_max, pages, page_size);
  RETURN_IF_ERROR(model->Load(checkpoint, progress));
  return model;
}

}  // namespace quicksilver
