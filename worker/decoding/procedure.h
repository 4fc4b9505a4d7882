#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "kernels/candidate.h"
#include "kernels/policy/open_block.h"

namespace quicksilver {

/// The canvas as a procedure sees it between two steps.
struct CanvasView {
  absl::Span<const TokenId> tokens;  ///< All positions; mask_id where nothing is written.
  absl::Span<const uint8_t> fixed;   ///< [positions] 1: prompt, suffix or given by the client, never to be written.
  TokenId mask_id = -1;
  int32_t answer_first = 0;    ///< The prompt's end.
  int32_t answer_end = 0;      ///< The answer's positions end here; fixed ones may follow.
  int32_t block = 0;           ///< Of the answer, from 0.
  int32_t first = 0;           ///< The open block's first position; below answer_first when it holds the prompt's tail.
  int32_t end = 0;             ///< The position behind it.
  int32_t forwards = 0;        ///< Denoising forwards so far.
  int32_t block_forwards = 0;  ///< Those of the open block.
  int32_t commits_min = 0;     ///< BlockRule::commits_min
};

/// One row whose numbers a step is asked for.
struct RowAsk {
  int32_t position = 0;   ///< That is predicted.
  TokenId asked_id = -1;  ///< RowChoice::asked_probability is wanted, of this token.
  bool shadow = false;    ///< Of the shadow block (WINO): a masked copy of the open block that nobody else sees.
};

/// What the step's forward said: one entry a RowAsk, in order.
struct StepNumbers {
  absl::Span<const RowChoice> choices;  ///< All finite.
  absl::Span<const TopLogit> tops;      ///< [choices, kTopReportedMax] when wants_tops(), else empty.
};

/// A written position. `token` may be the mask id: then it is masked again.
struct TokenWrite {
  int32_t position = 0;
  TokenId token = 0;
  float confidence = 0.0f;       ///< What the procedure ranks by.
  float log_probability = 0.0f;  ///< RowChoice::log_probability of the row, or 0.
};

struct Decision {
  std::vector<TokenWrite> writes;  ///< Ascending positions of the answer, each once.
  int32_t grown = 0;               ///< The answer gets so many positions more at its end, all masked, before `writes`.
                                   ///< Blocks keep their length: the last one may become longer, and new ones come.
  bool keep_open = false;          ///< The block stays open although it has no mask left.
  bool paced = false;              ///< commits_min made it write more than the policy asked for.
};

/// One decoding procedure: a rule, and its state between the steps of one sequence. Pure: equal calls give equal
/// answers on every rank, and randomness comes from `PlaceOf` alone. A block without masks closes unless keep_open.
class Procedure {
 public:
  virtual ~Procedure() = default;
  virtual std::unique_ptr<Procedure> Clone() const = 0;

  /// The view's block was opened, at the start, behind the one before, or by a resume. Forgets all state of a block.
  virtual void OpenBlock(const CanvasView& view) { static_cast<void>(view); }
  /// Appends the rows whose numbers the next step is to bring, by ascending position, shadow rows last. Not empty while
  /// the block is open. The default: every masked position of the open block.
  virtual void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const;
  /// Decides a step. Writes at least one masked position, or ends by itself: after at most steps_max() forwards of a
  /// block it is clean and not kept open.
  virtual Decision Decide(const CanvasView& view, const StepNumbers& numbers) = 0;
  /// How a device decides the rows of Ask() as Decide() would, several steps on end and without the host; none: it may
  /// not. Requires a default Ask() and no state.
  virtual std::optional<BlockRule> DeviceRule(const CanvasView& view) const {
    static_cast<void>(view);
    return std::nullopt;
  }
  /// Most forwards of a block of `positions` positions.
  virtual int32_t steps_max(int32_t positions) const { return positions + 2; }

  /// Every forward writes a masked position, and nothing becomes masked again.
  virtual bool writes_always() const { return false; }
  /// It also writes positions behind the open block.
  virtual bool writes_ahead() const { return false; }
  /// Between the steps of a block it knows more than the canvas tells: a resume begins at the block.
  virtual bool stateful() const { return false; }
  /// Committed tokens of the open block may change: no answer ends before its block closes.
  virtual bool edits() const { return false; }
  virtual bool wants_tops() const { return false; }
  virtual bool wants_history() const { return false; }  ///< RowChoice::mean_previous; see decoding.md §9.
  virtual bool wants_shadow() const { return false; }
  /// The next forward of the block depends on what the last one left on the device (models.md §8, self-conditioning).
  virtual bool conditioned() const { return false; }
  /// Of the draws of the next forward, where `requested` is the client's.
  virtual float Temperature(const CanvasView& view, float requested) const {
    static_cast<void>(view);
    return requested;
  }
  /// The id that the next forward sees at `position`.
  virtual TokenId Input(const CanvasView& view, int32_t position) const {
    return view.tokens[static_cast<size_t>(position)];
  }
  /// Appends what is added to the logits of the row that predicts `position`, ascending ids.
  virtual void AppendBiases(int32_t position, std::vector<TokenBias>& biases) const {
    static_cast<void>(position);
    static_cast<void>(biases);
  }
};

}  // namespace quicksilver
