#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/collectives/communicator.h"
#include "worker/model/model_spec.h"
#include "worker/model/weights.h"

namespace quicksilver {

/// One rank's slice of a model, and the forward pass, written once for every device, family and tensor-parallel size.
/// Not thread-safe. `ops` and `ranks` outlive it.
class Transformer {
 public:
  /// Reads this rank's slices (models.md §9.1) of `checkpoint` into device memory. `rows_max`: the most rows a Forward
  /// may have; `pages` x `page_size`: positions of the KV cache.
  /// InvalidArgument, naming file, tensor, expected and found: what CheckCheckpoint() refuses, or a page size that is
  /// no multiple of the block. ResourceExhausted: does not fit. DataLoss: the storage fails.
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(const ModelSpec& spec, const Checkpoint& checkpoint,
                                                           Ops& ops, Communicator& ranks, int32_t rows_max,
                                                           int32_t pages, int32_t page_size,
                                                           const LoadProgress& progress = nullptr);
  virtual ~Transformer() = default;

  virtual const ModelSpec& spec() const = 0;
  virtual int32_t page_size() const = 0;
  virtual int32_t pages() const = 0;
  virtual int64_t shard_rows() const = 0;  ///< V / tp rounded up: the logits of a row on this rank.

  /// Runs all layers over layout.rows rows, writing their KV. ids: [N] device. Enqueued; two all-reduces a layer.
  /// The result, final norm applied, stays inside until the next Forward.
  virtual void Forward(const int32_t* ids, const StepLayout& layout) = 0;

  /// Reduces the logits of some rows of the last Forward to this rank's candidates. rows: [rows_count] device, indices
  /// into the last Forward's rows; the requests' row and guide_row index `rows`. Other arguments as Ops::Candidates.
  virtual void Candidates(const int32_t* rows, int32_t rows_count, const CandidateBatch& batch, int32_t top_count,
                          Candidate* out, TopLogit* top) = 0;

  /// Keeps what rows of canvases expect, at `slots` [batch.count] (device; negative: nowhere), for the next Forward to
  /// read where its layout says so (models.md §8.4, self-conditioning). rows as in Candidates(), behind whose gathered
  /// records it comes. Enqueued; one all-reduce. Families without self-conditioning keep nothing.
  virtual void Condition(const int32_t* rows, int32_t rows_count, const SoftEmbedBatch& batch, const int32_t* slots) {
    static_cast<void>(rows), static_cast<void>(rows_count), static_cast<void>(batch), static_cast<void>(slots);
  }

  /// For tests and tools: this rank's raw logits [rows_count, V/tp] of some rows of the last Forward, into `out`.
  virtual void Logits(const int32_t* rows, int32_t rows_count, Matrix out) = 0;

  /// For tests: called with a name ("embedding", "after_layer0", …, "final_norm") and the hidden states [N, H]
  /// (device).
  using Observer = std::function<void(const std::string& name, ConstMatrix hidden)>;
  virtual void SetObserver(Observer observer) = 0;

  virtual size_t weight_bytes() const = 0;  ///< Device memory of this rank's weights.
  virtual size_t kv_bytes() const = 0;      ///< Device memory of this rank's KV pages.
};

}  // namespace quicksilver
