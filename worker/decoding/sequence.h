#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/policy/open_block.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/decoding/pace.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// How far a sequence was decoded elsewhere. With the spec it is everything that the future depends on.
struct Resumption {
  int32_t forwards = 0;         ///< Denoising forwards so far.
  int32_t block_forwards = 0;   ///< Those of the open block, which holds `final_before`.
  int32_t final_before = 0;     ///< Positions below it are final.
  std::vector<TokenId> tokens;  ///< From the prompt's end on, -1 where masked; what is behind them is masked.
};

/// Everything a sequence is made of.
struct SequenceSpec {
  BlockGrid grid = BlockGrid::kAbsolute;
  TokenId mask_id = -1;
  int32_t positions_max = 0;
  std::vector<TokenId> prompt;
  int32_t tokens_max = 0;         ///< >= 1
  std::vector<TokenId> stop_ids;  ///< Ascending. A stop token ends the answer and is not part of it.
  std::vector<TokenId> eos_ids;   ///< Ascending. What DecodingRule::distrust_eos is about.
  SamplingRule sampling;
  DecodingRule decoding;
  /// Denoise a block to its end although an answer is already certain to end in it, as the reference procedures do.
  bool finish_blocks = false;
  std::optional<Resumption> resumption;  ///< Where to go on; else at the prompt's end. CheckResumption() is OK.
};

/// InvalidArgument unless `spec.resumption` is a state in which a sequence of `spec` can be after some step and has not
/// ended. The rest of `spec`, and the token ids, are valid. The error names the field of the worker's contract, its
/// value and the bound.
absl::Status CheckResumption(const SequenceSpec& spec);

/// What a sequence does in one step: runs the tokens at positions [first_position, first_position + rows) against keys
/// [0, keys). Rows before the open block are clean tokens whose KV this writes.
struct Segment {
  int32_t first_position = 0;
  int32_t rows = 0;
  int32_t keys = 0;
  bool denoise = false;  ///< The last rows are the open block: the choices of masked() are wanted. Else prefill only.
};

/// One written token. `confidence` is its probability whatever the rule ranked by.
struct TokenCommit {
  int32_t position = 0;
  TokenId token = 0;
  float confidence = 0.0f;
  float log_probability = 0.0f;
};

enum class SequenceEndReason { kNone, kStop, kLength, kDeadline, kNumericalError, kStuck };

/// What one denoising step changed.
struct StepOutcome {
  int32_t block = 0;                 ///< Index in the sequence's grid.
  std::vector<TokenCommit> commits;  ///< Ascending positions.
  bool block_closed = false;         ///< The block's tokens are final.
  bool paced = false;                ///< commits_min() made it commit more than the policy asked for.
  SequenceEndReason end = SequenceEndReason::kNone;
};

/// The state machine of one sequence: canvas, open block, step. Pure: equal calls give equal states on every rank.
///
/// On the absolute grid the prompt's whole blocks are prefilled (in chunks of whole blocks if need be), the prompt's
/// tail shares its block with the answer, and a closed block's KV is written by the forward that first denoises the
/// next one: its rows go in front, the mask rule keeps the two apart, so the cache stays exact and costs no forward of
/// its own. After the prompt's grid (bidirectional families) every step runs the whole canvas.
///
/// The sequence ends when a stop token of the answer has no mask before it (at once, also within a block: what comes
/// before it can no longer change), else with the block that holds the last wanted token, which is decoded whole.
class Sequence {
 public:
  explicit Sequence(SequenceSpec spec);

  const SequenceSpec& spec() const { return spec_; }
  absl::Span<const TokenId> canvas() const { return canvas_; }
  int32_t prompt_tokens() const { return prompt_; }
  bool guided() const { return spec_.decoding.guidance_scale > 0.0f; }  ///< A twin segment of guide rows is wanted.
  /// The id at `position` for the guide rows: prompt positions are masked.
  TokenId GuideTokenAt(int32_t position) const {
    return position < prompt_ ? spec_.mask_id : canvas_[static_cast<size_t>(position)];
  }

  /// Most rows that one step can need at once, guide rows included: a smaller budget could never run this sequence.
  int32_t rows_needed_max() const;
  /// Clean rows in front of the open block still to be prefilled; a multiple of the block length. 0 once denoising has
  /// begun, until DropKv().
  int32_t prefill_rows() const;
  /// The KV of positions below it is in the cache, computed from clean rows. Always 0 after the prompt's grid.
  int32_t written() const { return written_; }
  /// The KV of positions below `positions`, a multiple of the block length and at most open_block_start(), was found in
  /// a cache. Absolute grid; right after construction or DropKv().
  void TakeCached(int32_t positions);
  /// The cache has lost the sequence: what is before the open block will be prefilled again. Changes no token.
  void DropKv();
  /// Rows of the next denoising segment, all clean rows before the open block and guide rows included.
  int32_t denoise_rows() const;
  /// The segment for at most `rows` rows (a guide's rows count): the denoising segment when it fits, else whole blocks
  /// of prefill. Requires: rows >= denoise_rows(), or prefill is left and rows >= one block.
  Segment Next(int32_t rows) const;

  /// Masked positions of the open block, ascending: the rows whose choices a denoising step wants.
  absl::Span<const int32_t> masked() const { return masked_; }
  /// The first position of the answer that holds a stop token, with masks before it: the answer ends when these are
  /// filled. -1: there is none, or blocks are finished in any case.
  int32_t NextStop() const;
  /// How the rows of masked() are decided.
  BlockRule rule() const;
  /// A denoising step commits at least so many tokens from now on (BlockRule::commits_min); 0: what the policy says.
  void set_commits_min(int32_t commits_min) { commits_min_ = commits_min; }
  /// Tokens that rank last.
  absl::Span<const TokenId> distrusted() const;
  /// Where the draw of a position's token happens in the next denoising step.
  DrawPlace PlaceOf(int32_t position) const;

  /// Takes the results of a prefill segment.
  void ApplyPrefill(const Segment& segment);
  /// Takes the results of a denoising segment: choices[i] is for masked()[i]. Not after an end.
  StepOutcome ApplyDenoise(const Segment& segment, absl::Span<const RowChoice> choices);
  /// Its time is over: what is committed before the first mask is the answer. Not after an end.
  StepOutcome EndAtDeadline();

  int32_t forwards() const { return forwards_; }              ///< Denoising forwards so far.
  int32_t block_forwards() const { return block_forwards_; }  ///< Those of the open block.
  int32_t block() const { return block_; }
  int32_t open_block_start() const { return BlockStart(block_); }
  RemainingMasks remaining() const;
  /// Positions below it are final: they never change and belong to prompt or answer.
  int32_t final_before() const { return final_before_; }

 private:
  int32_t BlockStart(int32_t block) const;
  int32_t BlockEnd(int32_t block) const;
  void OpenBlock(int32_t block);
  void Resume(const Resumption& resumption);
  std::vector<uint8_t> SelectRows(absl::Span<const RowChoice> choices, bool& paced) const;
  int32_t FirstStop() const;
  int32_t AnswerEnd() const;
  SequenceEndReason CloseOrEnd(StepOutcome& outcome);

  SequenceSpec spec_;
  int32_t prompt_ = 0;
  std::vector<TokenId> canvas_;
  int32_t written_ = 0;     // KV of positions below it is in the cache and exact (absolute grid only).
  bool prefilling_ = true;  // No denoising forward since the cache had nothing of this.
  int32_t block_ = 0;
  int32_t block_forwards_ = 0;
  std::vector<int32_t> masked_;
  int32_t forwards_ = 0;
  int32_t final_before_ = 0;
  int32_t commits_min_ = 0;
  bool ended_ = false;
};

}  // namespace quicksilver
