#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/engine/history_slots.h"
#include "worker/engine/scheduler.h"

namespace quicksilver {

/// How many entries the arrays of a step have: all that a recorded step depends on, besides the contents of memory.
struct StepShape {
  int32_t rows = 0;               ///< Of the batch.
  int32_t segments = 0;           ///< Guides' included.
  int32_t segment_rows = 0;       ///< Of the largest segment.
  int32_t blocks = 0;             ///< Sequences that denoise.
  int32_t head_rows[2] = {0, 0};  ///< Rows that need logits, without and with top lists; guides' included.
  int32_t list_tokens = 0;
  int32_t biases = 0;
  int32_t conditioned = 0;  ///< 1: canvases tell their next step what they expect (Procedure::conditioned()).

  int32_t requests() const { return head_rows[0] + head_rows[1]; }
  auto operator<=>(const StepShape&) const = default;
};

/// Most attention segments of one planned segment: clean rows and canvas, each with a guide's.
inline constexpr int32_t kSegmentsEach = 4;

/// `shape` rounded up to one of few, within the bounds of a step: rows to 8 times a power of two or 1.5 times one, the
/// rows that need logits to half or all of them, the largest segment to 16, 32, 64 or all rows.
StepShape RoundUp(const StepShape& shape, int32_t rows_max, int32_t sequences_max);

/// Everything that a step's kernels read besides weights and cache, one array after the other in one piece of memory.
/// The order and the places depend on the shape alone; the page table, which is as long as it is, comes last.
struct StepArrays {
  StepControl* control = nullptr;        // 1
  int32_t* ids = nullptr;                // [rows]
  int32_t* positions = nullptr;          // [rows]
  int32_t* slots = nullptr;              // [rows]
  AttentionSegment* segments = nullptr;  // [segments]
  int32_t* head_rows[2] = {};            // [head_rows[i]] indices into the rows
  CandidateRequest* requests = nullptr;  // [requests()]: those of part 0, then those of part 1
  BlockRow* block_rows = nullptr;        // [requests()]
  int32_t* live = nullptr;               // [requests()]
  int32_t* block_positions = nullptr;    // [requests()]
  OpenBlock* blocks = nullptr;           // [blocks]
  TokenId* token_lists = nullptr;        // [list_tokens]
  TokenBias* biases = nullptr;           // [biases]
  int32_t* conditioning = nullptr;       // [rows] StepLayout::conditioning; nullptr unless conditioned.
  int32_t* condition_slots = nullptr;    // [requests()] where what a row expects is kept, or -1.
  int32_t* page_table = nullptr;
  size_t bytes_before_pages = 0;
};

/// Where the arrays of `shape` are in memory that starts at `base` (aligned to 64 bytes).
StepArrays MapStepArrays(char* base, const StepShape& shape);

/// The rows of one planned segment that are to be decided, in the order of Sequence::asked() when the step was laid
/// out.
struct OpenRows {
  int32_t first_row = 0;  ///< Among the requests.
  std::vector<RowAsk> asked;
};

/// Lays out the ragged batch of a plan. Pure.
class StepBatch {
 public:
  /// `history`, which outlives it, says where the logits of a row are kept.
  StepBatch(int32_t page_size, const HistorySlots& history) : page_size_(page_size), history_(history) {}

  /// The exact shape of `plan`.
  static StepShape ShapeOf(absl::Span<const PlannedSegment> plan);
  /// Rows of `plan` that denoise nothing: clean ones in front of open blocks, and prefill.
  static int32_t CleanRows(absl::Span<const PlannedSegment> plan);
  /// Page numbers that `plan` lists.
  int32_t PagesOf(absl::Span<const PlannedSegment> plan) const;

  /// Fills the arrays, padding what `shape` has more than the plan. The page table must have room for PagesOf(plan).
  void LayOut(absl::Span<const PlannedSegment> plan, const StepShape& shape, const StepArrays& arrays);

  const OpenRows& open_rows(size_t index) const { return open_rows_[index]; }

 private:
  /// Where the rows of a planned segment went.
  struct Places {
    int32_t first_row = 0;
    int32_t guide_first_row = -1;
    int32_t shadow_first_row = -1;
  };
  enum class RowKind { kMain, kGuide, kShadow };

  int32_t AddRows(const RunningSequence& running, const Segment& segment, RowKind kind, const StepArrays& arrays);
  void AddAttention(AttentionSegment segment, const std::vector<int32_t>& pages, const StepArrays& arrays);
  void AddBlock(const RunningSequence& running, const Segment& segment, const Places& places, const StepShape& shape,
                const StepArrays& arrays, OpenRows& open);
  void AddRequests(const RunningSequence& running, const Segment& segment, const Places& places,
                   const StepArrays& arrays, const OpenRows& open);
  void AddBiases(const Sequence& sequence, const OpenRows& open, const StepArrays& arrays);
  int32_t AddList(absl::Span<const TokenId> tokens, const StepArrays& arrays);
  void Pad(const StepShape& shape, const StepArrays& arrays);

  const int32_t page_size_;
  const HistorySlots& history_;

  // How far the arrays are filled.
  int32_t rows_ = 0;
  int32_t segments_ = 0;
  int32_t blocks_ = 0;
  int32_t head_rows_[2] = {0, 0};
  int32_t requests_[2] = {0, 0};
  int32_t list_tokens_ = 0;
  int32_t biases_ = 0;
  int32_t pages_ = 0;
  std::vector<OpenRows> open_rows_;
};

}  // namespace quicksilver
