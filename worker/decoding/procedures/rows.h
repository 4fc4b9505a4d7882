#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/decoding/procedure.h"

// What procedures share.

namespace quicksilver {

/// How many forwards the schedule of a block has.
struct BlockSchedule {
  int32_t steps = 1;   ///< >= 1
  int32_t blocks = 0;  ///< 0: each block has `steps`. Else they are shared out among so many blocks, one each at least.

  int32_t StepsOf(int32_t block) const;
  int32_t steps_max() const;  ///< Of any block.
};

/// Positions [first, end).
struct PositionRange {
  int32_t first = 0;
  int32_t end = 0;
};

/// The open block without the prompt's tail and what follows the answer.
PositionRange OpenRange(const CanvasView& view);

inline bool IsMasked(const CanvasView& view, int32_t position) {
  return view.tokens[static_cast<size_t>(position)] == view.mask_id;
}
/// True when a procedure may write `position`, which is in the answer.
inline bool IsFree(const CanvasView& view, int32_t position) { return view.fixed[static_cast<size_t>(position)] == 0; }

int32_t CountMasks(const CanvasView& view, PositionRange range);

/// The rows that `procedure` asks for; as many as `numbers` has choices.
std::vector<RowAsk> AskedRows(const Procedure& procedure, const CanvasView& view, const StepNumbers& numbers);

inline DrawPlace PlaceIn(const CanvasView& view, const SamplingRule& sampling, int32_t position) {
  return {sampling.seed, sampling.choice, static_cast<uint32_t>(position), static_cast<uint32_t>(view.forwards)};
}

inline TokenWrite WriteOf(int32_t position, const RowChoice& choice) {
  return {position, choice.token, choice.confidence, choice.log_probability};
}

/// Marks the best of the unmarked rows, ties: the first, until `count` are marked or all are. True when it marked one.
bool MarkBest(absl::Span<const float> rank, int32_t count, std::vector<uint8_t>& marked);

/// Marks the rows above `threshold`, and the `count_min` best in any case. Returns how many are marked.
int32_t MarkAbove(absl::Span<const float> rank, float threshold, int32_t count_min, std::vector<uint8_t>& marked);

/// Puts writes into the order that Decision wants.
void SortWrites(std::vector<TokenWrite>& writes);

}  // namespace quicksilver
