#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/candidate.h"
#include "kernels/policy/block_step.h"
#include "kernels/policy/soft_embedding.h"
#include "kernels/tensor.h"

namespace quicksilver {

class Ops;

/// Owns one allocation of device memory. Movable; frees itself.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Ops* ops, void* data, size_t bytes) : ops_(ops), data_(data), bytes_(bytes) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = static_cast<DeviceBuffer&&>(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Ops* ops_ = nullptr;  // Outlives this.
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Where a weight stands in the model. An implementation with a reduced precision for layers keeps the head as it is:
/// the differences between logits decide what is committed.
enum class WeightRole : uint8_t { kLayer, kHead };

/// A GEMM weight [out, in] in whatever layout the device likes best. Made once, at load.
class GemmWeight {
 public:
  virtual ~GemmWeight() = default;
  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;
  virtual size_t bytes() const = 0;  ///< Device memory held.
};

/// What one sequence does in one step, as the attention sees it. Rows of a segment are consecutive in the batch and
/// stand at consecutive positions. Device-readable: plain data.
struct AttentionSegment {
  int32_t first_row = 0;       ///< In the step's batch.
  int32_t rows = 0;            ///< 0: padding, does nothing.
  int32_t first_position = 0;  ///< Absolute position of the first row.
  int32_t keys = 0;            ///< Keys that exist: positions [0, keys). At least first_position + rows.
  int32_t first_page = 0;      ///< Index into `page_table` of the page of position 0.
  /// B of the mask rule: a query at position q sees the keys j with floor(j / B) <= floor(q / B); 1 is causal,
  /// kBidirectional sees all.
  int32_t block_length = 0;
  /// Key that the first row does not see; the next row does not see the next key, and so on. -1: none is hidden.
  int32_t unseen_key = -1;
};

/// AttentionSegment::block_length of a bidirectional segment.
inline constexpr int32_t kBidirectional = 0;

/// The shape of one step. Pointers are device memory; the sums and maxima are for the host side of an implementation.
/// In a recorded step they are upper bounds: batch rows beyond the segments are padding (position 0, slot -1), whose
/// outputs mean nothing.
struct StepLayout {
  int32_t rows = 0;                    ///< N
  const int32_t* positions = nullptr;  ///< [N] absolute position of each row.
  const int32_t* slots = nullptr;      ///< [N] where a row's key and value go: page * page_size + offset, or -1.
  const AttentionSegment* segments = nullptr;  ///< [segments_count], by ascending first_row; padding at the end.
  int32_t segments_count = 0;
  const int32_t* page_table = nullptr;  ///< Page numbers of all segments, one run a segment.
  int32_t page_size = 0;                ///< Positions a page.
  /// [N] of a canvas's rows where their soft embeddings of the step before are: slots, or INT32_MAX for none yet. -1:
  /// any other row. Null: the step has no canvas.
  const int32_t* conditioning = nullptr;
  int32_t rows_max = 0;  ///< Largest `rows` of a segment.
  int32_t keys_max = 0;  ///< Largest `keys` of a segment.
};

/// Keys and values of one layer: [pages * page_size, nkv/tp * hd] each, row = slot.
struct KvLayer {
  Matrix keys;
  Matrix values;
};

/// What a layer's attention does besides the masks of the segments.
struct AttentionRule {
  float scale = 0.0f;  ///< Of the scores; 0: 1/sqrt(hd).
  /// 0: none. Else a row at position q sees no key before q - (window - 1), and the rows of a bidirectional segment none
  /// before first_position - (window - 1) (models.md §8.4).
  int32_t window = 0;
};

/// How q and k are rotated (models.md §0.2): always the half-rotation layout. With rotary_size d (0: hd), pairs
/// (i, i + d/2) for i < d/2 have frequency theta^(-2i/d), and the rest of a head passes through. `proportional`
/// (models.md §8.4): pairs (i, i + hd/2), of which the first rotary_size/2 have frequency theta^(-2i/hd), the rest 0.
/// A rotary_size below hd is a multiple of 4.
struct RopeParameters {
  double theta = 10000.0;
  int32_t rotary_size = 0;
  bool proportional = false;
  /// True (LLaDA): multiply in float. False (all others): cos and sin are rounded to the activation type first.
  bool full_precision = false;
};

/// What an RMSNorm multiplies by.
struct NormGain {
  NormGain(const float* of_columns, bool multiply_in_float = false)  // NOLINT: a plain gain is one
      : values(of_columns), in_float(multiply_in_float) {}

  const float* values;  ///< [cols] floats on the device; null: ones.
  bool in_float;        ///< Multiply in float and round once (DiffusionGemma), instead of rounding before it.
};

/// What happens to queries and keys between their projection and the attention.
struct HeadTransform {
  const float* q_gain = nullptr;  ///< [hd] device: RMSNorm of every query head. Null: none.
  const float* k_gain = nullptr;  ///< [hd] device: the same of every key head.
  float epsilon = 0.0f;
  bool norm_values = false;  ///< RMSNorm without a gain on every value head before it is stored.
  bool float_gain = false;   ///< Norms multiply by the gain in float and round once, instead of rounding before it.
  RopeParameters rope;
};

/// What a router does with its logits (models.md §3.3, §4.4, §4.5, §5.3, §8.4). Ties: the lower expert or group; a NaN
/// counts as the lowest score.
struct RoutingRule {
  enum class Score : uint8_t { kSoftmax, kSigmoid };
  Score score = Score::kSoftmax;
  int32_t experts = 0;       ///< E, at most kExpertsMax.
  int32_t chosen = 0;        ///< k experts a row, at most kChosenExpertsMax; so many are always admitted.
  int32_t groups = 0;        ///< 0: none. Else experts stand in so many equal runs of two or more, of which …
  int32_t groups_kept = 0;   ///< … those with the largest sums of their two best biased scores are kept.
  int32_t pool_block = 0;    ///< 0: none. Else only the pool_experts with the largest biased score over the rows of …
  int32_t pool_experts = 0;  ///< … one segment in the same absolute block of pool_block positions are admitted.
  const float* bias = nullptr;          ///< [E] device, added to the scores that experts are chosen by.
  bool weigh_biased = false;            ///< Weights are the biased scores (LLaDA-MoE).
  bool normalise = false;               ///< Weights are divided by their sum + 1e-20.
  float scale = 1.0f;                   ///< Of the weights.
  const float* expert_scale = nullptr;  ///< [E] device: of each expert's weight. Null: 1.
  bool round_weights = false;           ///< To the activation type, last (LLaDA-MoE, SDAR).
};

inline constexpr int32_t kExpertsMax = 1024;
inline constexpr int32_t kChosenExpertsMax = 32;

/// The activation of a gated MLP.
enum class Activation : uint8_t { kSilu, kGeluTanh };

/// What one rank holds of one layer's experts: a run of them, each whole or a share of its columns.
struct ExpertShape {
  int32_t first = 0;   ///< Experts [first, first + count) of E.
  int32_t count = 0;   ///< 0: none, and every sum is 0.
  int64_t hidden = 0;  ///< H
  int64_t mlp = 0;     ///< Im, or Im/tp.
};

/// Matrices of one expert: [2 Im, H], its gate rows and then its up rows; and [H, Im].
enum class ExpertMatrix : uint8_t { kGateUp, kDown };

/// The experts of one layer that this rank holds, in whatever layout the device likes best. Its Ops outlives it.
class ExpertWeights {
 public:
  virtual ~ExpertWeights() = default;
  virtual const ExpertShape& shape() const = 0;
  virtual size_t bytes() const = 0;  ///< Device memory held.
  /// Takes a matrix of `expert`, numbered among all E, as PrepareWeight does. Those that were never loaded are 0.
  virtual absl::Status Load(int32_t expert, ExpertMatrix which, ConstMatrix host) = 0;
};

/// Work that was recorded once, to be enqueued many times with other contents of the same device memory.
class Program {
 public:
  virtual ~Program() = default;
  /// Enqueues the work. Every Program of an Ops runs in order with its other operations.
  virtual void Launch() = 0;
};

/// The operations of one device. Work is enqueued in order and may run later: nothing is returned, the first failure
/// sticks and comes out of Synchronize(). Shapes are the caller's promise (CHECK). Every operation is row-invariant:
/// the bits of an output row depend on that row's inputs alone, not on the number, order or content of other rows.
/// Activations (`Matrix` arguments) all have the dtype `activation_dtype()` unless said otherwise. Not thread-safe.
class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string name() const = 0;  ///< E.g. "cpu-reference", "cpu-onednn", "cuda".
  virtual DType activation_dtype() const = 0;

  // Memory. Upload and Download are ordered with the operations; what Upload reads may be changed as soon as it
  // returns, and Download's bytes are there after Synchronize().
  virtual absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) = 0;  ///< Zeroed. ResourceExhausted when it does not fit.
  virtual void Upload(const void* host, void* device, size_t bytes) = 0;
  virtual void Download(const void* device, void* host, size_t bytes) = 0;
  virtual absl::Status Synchronize() = 0;
  /// The first failure that is known by now, without waiting. Unavailable: the device has failed, until the process
  /// ends; ResourceExhausted: its memory does not suffice.
  virtual absl::Status status() const = 0;

  /// Zeroed memory that the host and the device both reach: what the device writes there the host may read after
  /// Synchronize(), or sooner behind a word that it Await()s.
  virtual absl::StatusOr<DeviceBuffer> AllocateShared(size_t bytes) = 0;
  /// Waits, `milliseconds` at most, until the word in shared memory is at least `value`, or until all enqueued work has
  /// ended. Returns status(), or DeadlineExceeded, which does not stick: neither within `milliseconds`.
  virtual absl::Status Await(const uint32_t* word, uint32_t value, int32_t milliseconds) = 0;

  // Programs.
  /// True when launches are dear: steps should be padded to few shapes, recorded and replayed.
  virtual bool prefers_programs() const = 0;
  /// Enqueues the work of `enqueue` in the very way in which Record() takes it, so that a recording of the same work
  /// finds everything prepared: it then neither tries anything out nor allocates.
  virtual void Rehearse(const std::function<void()>& enqueue) { enqueue(); }
  /// Records the operations that `enqueue` calls on this Ops (and on communicators that share its queue); nothing runs.
  /// They must not allocate, and `enqueue` must not Upload, Download or Synchronize. A Launch() enqueues them once, and
  /// again for as long as the device finds *proceed (device memory) other than 0 after a pass; null: once.
  virtual absl::StatusOr<std::unique_ptr<Program>> Record(const std::function<void()>& enqueue,
                                                          const int32_t* proceed) = 0;

  /// Decides one step of every open block from what the ranks answered, writes the chosen tokens to step.ids, and tells
  /// the host in shared memory: choices, seals, and last the number of steps done. A step without blocks counts, too.
  virtual void AdvanceBlocks(const BlockStep& step) = 0;

  /// Announces the layout of the operations up to the next BeginStep(). The first operation of every step.
  virtual void BeginStep(const StepLayout& layout) = 0;

  /// Takes a row-major HOST matrix [out, in], f32 or bf16 (stride may exceed cols), and keeps a copy in its own layout,
  /// rounded to the activation type, or coarser where the implementation says so of `role`. Has read `host` on return.
  virtual absl::StatusOr<std::unique_ptr<GemmWeight>> PrepareWeight(ConstMatrix host, WeightRole role) = 0;

  /// out[n, :] = table[ids[n] - first_id, :], or zeros when the id is outside of [first_id, first_id + table.rows).
  /// ids: [N] device; table: [V/tp, H], f32 or bf16 device memory; out: [N, H].
  virtual void Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) = 0;

  /// out[n,h] = act(x[n,h] / sqrt(mean_h(x[n,h]^2) + epsilon)) * gain[h]; act() rounds to the activation type before
  /// the gain (models.md §0.2) unless gain.in_float. Sums in float. x, out: [N, H]. `out` may be `x`.
  virtual void RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) = 0;

  /// x[n,h] += y[n,h], rounded to the activation type; then out = RmsNorm(x). x, y, out: [N, H], all different.
  virtual void AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) = 0;

  /// x[n,h] += RmsNorm(y)[n,h], both rounded to the activation type. x, y: [N, H], different.
  virtual void AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) = 0;

  /// x[n,h] *= *factor, rounded to the activation type. factor: a float on the device.
  virtual void Scale(const float* factor, Matrix x) = 0;

  /// Rows with rows[n] >= 0 become RmsNorm(x + y) without a gain, x + y rounded to the activation type first. The
  /// others stay. rows: [N] device; x, y: [N, H], different.
  virtual void AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) = 0;

  /// out = x * weight^T. x: [N, in]; out: [N, out], of the activation type or f32. Accumulates in float.
  virtual void Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) = 0;

  /// Adds bias[c] to every row, in place. bias: [cols] floats on the device.
  virtual void AddBias(const float* bias, Matrix x) = 0;

  /// qkv: [N, (heads + 2 kv_heads) * hd], in place: norms the query and key heads as `transform` says, rotates them by
  /// layout.positions (each result rounded to the activation type), and stores keys and values at layout.slots in
  /// `cache`.
  virtual void RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                              const KvLayer& cache, Matrix qkv) = 0;

  /// Softmax attention, softmax in float. A query sees the keys j < keys of its segment that neither the segment's
  /// masks nor the rule's window hide from it; at least one must be left. The rows of this step have been written. Keys
  /// that the window or unseen_key hide must be finite all the same. q, out: [N, heads * hd]; query head i uses key
  /// head i * kv_heads / heads. Sums run over j in fixed tiles by absolute position, so bits depend neither on other
  /// segments nor on how a prefill was cut.
  virtual void Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads,
                         const AttentionRule& rule, const KvLayer& cache, Matrix out) = 0;

  /// out[n,i] = activation(gate_up[n,i]) * gate_up[n, I + i]. gate_up: [N, 2 I]; out: [N, I].
  virtual void GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) = 0;

  /// Chooses experts. logits: [N, E], f32 or of the activation type; scores in float. Of a rule with a pool the rows'
  /// blocks follow from `layout`. experts: [N, k] device, weights: [N, k] floats, both in descending order of the score
  /// that experts are chosen by. Rows of no segment get experts -1 and weights 0.
  virtual void Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
                     float* weights) = 0;

  /// Room for the experts of one layer: all zero until they are loaded.
  virtual absl::StatusOr<std::unique_ptr<ExpertWeights>> PrepareExperts(const ExpertShape& shape) = 0;

  /// out[n, :] = sum over the k experts of row n that `weights` holds, in order, of weight * down(act(gate(x)) up(x)),
  /// in float; experts that it does not hold, -1 among them, count 0. gate(x), up(x), their product and each expert's
  /// output are rounded to the activation type, as is the sum. add: the rounded sum is added to what `out` holds. x,
  /// out: [N, H], different; experts, expert_weights: [N, k] as Route() leaves them, so a row's experts differ.
  virtual void ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                         const float* expert_weights, int32_t k, bool add, Matrix out) = 0;

  /// out[r, :] = x[rows[r], :]. rows: [R] device.
  virtual void GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) = 0;

  /// out[rows[r], :] = x[r, :] where rows[r] >= 0; no two are equal. rows: [R] device.
  virtual void ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) = 0;

  /// Runs the LM head on the rows that are asked for, tile by tile, and reduces this rank's logits to a few numbers a
  /// row (candidate.h). Nothing of size requests x V is kept but the history. hidden: [R, H], final norm applied.
  /// weight: [V/tp, H]. out: [batch.count] device; top: [batch.count, top_count] device, descending logit, ties:
  /// smallest id first, missing entries {-inf, -1}; top_count in [0, kTopLogitsMax], may be 0 with top = nullptr.
  virtual void Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                          const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) = 0;

  /// out[r, :] = the sum over the ids v of this shard, ascending, of act(p(v)) * table[v - shard.first_id, :], in
  /// float; p: softmax(z / T) of all shards' logits z of request r (models.md §8.4), as the ranks' records tell. The
  /// shards' outputs add up to the soft embedding. Nothing of size requests x V is kept. hidden, weight as in
  /// Candidates(); table: [V/tp, H], f32 or bf16 device memory; out: [batch.count, H].
  virtual void SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                         const SoftEmbedBatch& batch, Matrix out) = 0;

 private:
  friend class DeviceBuffer;
  virtual void Free(void* data, size_t bytes) = 0;
};

inline DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ops_->Free(data_, bytes_);
    ops_ = other.ops_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  return *this;
}

inline DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) ops_->Free(data_, bytes_);
}

}  // namespace quicksilver
