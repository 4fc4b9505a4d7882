#pragma once

#include <cstdint>

#include "kernels/policy/open_block.h"

// What decides a step on the device: the ranks' candidates go in, tokens are written to the canvas, and the host learns
// what happened from shared memory. All plain data in device memory.

namespace quicksilver {

/// One sequence's open block. Its masked rows are BlockStep::rows [first_row, first_row + rows); `live` of them, in
/// ascending position, still wait for a token.
struct OpenBlock {
  BlockRule rule;
  int32_t forwards = 0;  ///< Of this block before the step.
  int32_t first_row = 0;
  int32_t rows = 0;  ///< 0: padding.
  int32_t live = 0;
  int32_t first_distrusted = 0;  ///< Into BlockStep::token_lists: tokens that rank last.
  int32_t distrusted_count = 0;
  int32_t first_stop = 0;  ///< Into BlockStep::token_lists: tokens whose commit ends the launch.
  int32_t stop_count = 0;
  /// The launch ends when rows [0, rows_before_stop) of the block have their tokens: a stop token that stands behind
  /// them then ends the answer. INT32_MAX: none does.
  int32_t rows_before_stop = INT32_MAX;
};

/// One masked row. Row i is what request i asked, and the ranks answered in record i + 1.
struct BlockRow {
  int32_t id_row = 0;         ///< Where its token goes in BlockStep::ids; -1: nowhere.
  int32_t guide_id_row = -1;  ///< The same of its guide row, or -1.
};

/// The loop of a launch. The device's.
struct StepControl {
  int32_t steps_max = 1;
  int32_t step = 0;     ///< Steps done.
  int32_t stop = 0;     ///< Some block needs the host: it closed, met a stop token, or saw a NaN.
  int32_t proceed = 0;  ///< 1 while another step follows.
};

/// What the host reads, in shared memory. Record 0 of a rank carries its seal: a hash of its decisions.
struct StepResults {
  uint32_t* published = nullptr;  ///< Steps whose choices are there.
  uint64_t* seals = nullptr;      ///< [ranks]
  RowChoice* choices = nullptr;   ///< [steps_max, rows_count]; those of rows that were live in that step.
  /// [steps_max, rows_count - first_top_row, kTopReportedMax] of blocks with top_reported: descending, each with the
  /// natural log of its raw probability in `logit`; what is missing is {-inf, -1}.
  TopLogit* tops = nullptr;
};

struct BlockStep {
  const Candidate* candidates = nullptr;  ///< [ranks, records], records = rows_count + 1
  const TopLogit* top =
      nullptr;  ///< [ranks, rows_count - first_top_row, kTopLogitsMax]: of rows from first_top_row on.
  int32_t first_top_row = 0;
  int32_t ranks = 0;
  OpenBlock* blocks = nullptr;
  int32_t blocks_count = 0;
  const BlockRow* rows = nullptr;
  int32_t rows_count = 0;
  CandidateRequest* requests = nullptr;  ///< [rows_count]
  int32_t* live = nullptr;               ///< [rows_count] a block's live rows, as offsets from its first row.
  int32_t* positions = nullptr;          ///< [rows_count] in the canvas, of the rows in `live`.
  float* ranking = nullptr;              ///< [rows_count] scratch
  uint8_t* selected = nullptr;           ///< [rows_count] scratch
  const TokenId* token_lists = nullptr;  ///< Every list ascending.
  int32_t* ids = nullptr;                ///< The token of every batch row.
  StepControl* control = nullptr;
  StepResults results;
};

// The parts of one block's step, in order. Each is for one live row (the i-th of the block) or for the block.

/// What the ranks answered about a row.
QS_HOST_DEVICE inline GatheredRow GatherRow(const BlockStep& step, int32_t row) {
  GatheredRow gathered;
  gathered.candidates = step.candidates + row + 1;
  gathered.candidate_stride = step.rows_count + 1;
  gathered.ranks = step.ranks;
  if (row >= step.first_top_row) {
    const int64_t top_rows = step.rows_count - step.first_top_row;
    gathered.top = step.top + int64_t{row - step.first_top_row} * kTopLogitsMax;
    gathered.top_stride = top_rows * kTopLogitsMax;
    gathered.top_count = kTopLogitsMax;
  }
  return gathered;
}

/// Chooses row i's token, tells the host, and ranks the row.
QS_HOST_DEVICE inline RowChoice ChooseToken(const BlockStep& step, const OpenBlock& block, int32_t i) {
  const int32_t row = block.first_row + step.live[block.first_row + i];
  const GatheredRow gathered = GatherRow(step, row);
  const DrawPlace place = step.requests[row].place;
  const RowChoice choice = MergeCandidates(gathered, block.rule.sampling, block.rule.raw_confidence, place);
  step.results.choices[int64_t{step.control->step} * step.rows_count + row] = choice;
  if (block.rule.top_reported > 0) {
    const int64_t top_rows = step.rows_count - step.first_top_row;
    const int64_t place_of_row = int64_t{step.control->step} * top_rows + row - step.first_top_row;
    ReportTops(gathered, block.rule.top_reported, choice.log_sum_exp,
               step.results.tops + place_of_row * kTopReportedMax);
  }
  const TokenList distrusted = {step.token_lists + block.first_distrusted, block.distrusted_count};
  step.ranking[block.first_row + i] = RankOf(block.rule, choice, place, distrusted);
  return choice;
}

/// True when the host decides the block: its rows are reported, nothing is selected or written, and the launch ends.
QS_HOST_DEVICE inline bool IsHosts(const OpenBlock& block) { return block.rule.policy == Policy::kHost; }

/// True when row i commits; `above`: rows of the block that rank above the rule's threshold.
QS_HOST_DEVICE inline bool SelectRow(const BlockStep& step, const OpenBlock& block, int32_t i, int32_t above) {
  const RankedRows rows = {step.ranking + block.first_row, step.positions + block.first_row, block.live};
  return IsSelected(block.rule, rows, i, ScheduledNow(block.rule, block.forwards), above);
}

/// Writes row i's token to the canvas when it was selected. True when the host has to look at the token.
QS_HOST_DEVICE inline bool CommitRow(const BlockStep& step, const OpenBlock& block, int32_t i) {
  if (step.selected[block.first_row + i] == 0) return false;
  const int32_t row = block.first_row + step.live[block.first_row + i];
  const TokenId token = step.results.choices[int64_t{step.control->step} * step.rows_count + row].token;
  if (step.rows[row].id_row >= 0) step.ids[step.rows[row].id_row] = token;
  if (step.rows[row].guide_id_row >= 0) step.ids[step.rows[row].guide_id_row] = token;
  return Contains({step.token_lists + block.first_stop, block.stop_count}, token);
}

/// After all rows have committed: closes the gaps and makes the requests of the next step. True when the host has to
/// look at the block: no row is left, or none before a stop token.
QS_HOST_DEVICE inline bool KeepLiveRows(const BlockStep& step, OpenBlock& block) {
  int32_t* const live = step.live + block.first_row;
  int32_t* const positions = step.positions + block.first_row;
  int32_t kept = 0;
  for (int32_t i = 0; i < block.live; ++i) {
    if (step.selected[block.first_row + i] != 0) continue;
    ++step.requests[block.first_row + live[i]].place.step;
    live[kept] = live[i];
    positions[kept++] = positions[i];
  }
  block.live = kept;
  ++block.forwards;
  return kept == 0 || live[0] >= block.rows_before_stop;
}

/// The seal of a rank, as its record 0 carries it.
QS_HOST_DEVICE inline uint64_t SealOf(const BlockStep& step, int32_t rank) {
  return *reinterpret_cast<const uint64_t*>(step.candidates + int64_t{rank} * (step.rows_count + 1));
}

/// After all blocks: tells the host the seals, ends the step and decides whether another one
/// follows. The caller then publishes control->step.
QS_HOST_DEVICE inline void EndStep(const BlockStep& step) {
  StepControl& control = *step.control;
  for (int32_t rank = 0; rank < step.ranks; ++rank) {
    step.results.seals[rank] = SealOf(step, rank);
    if (SealOf(step, rank) != SealOf(step, 0)) control.stop = 1;  // The ranks disagree: the host's to say.
  }
  ++control.step;
  control.proceed = control.stop == 0 && control.step < control.steps_max ? 1 : 0;
}

}  // namespace quicksilver
