#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/policy/open_block.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/decoding/pace.h"
#include "worker/decoding/procedure.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// How far a sequence was decoded elsewhere. With the spec it is everything that the future depends on.
struct Resumption {
  int32_t forwards = 0;         ///< Denoising forwards so far.
  int32_t block_forwards = 0;   ///< Those of the open block, which holds `final_before`.
  int32_t final_before = 0;     ///< Positions below it are final.
  std::vector<TokenId> tokens;  ///< From the prompt's end on, -1 where masked; what is behind them is masked.
  int32_t canvas_length = 0;    ///< Positions of the canvas where that has grown; 0: as at the beginning.
};

/// Everything a sequence is made of.
struct SequenceSpec {
  BlockGrid grid = BlockGrid::kAbsolute;
  bool shift = false;  ///< Row p - 1 predicts position p (row 0 for p = 0).
  TokenId mask_id = -1;
  int32_t positions_max = 0;
  std::vector<TokenId> prompt;
  std::vector<TokenId> suffix;    ///< Fixed tokens behind the tokens_max positions of the answer.
  std::vector<TokenId> fixed;     ///< Of the answer from its beginning; -1: to be decided.
  std::vector<TokenId> draft;     ///< The same, to begin with.
  int32_t tokens_max = 0;         ///< >= 1
  std::vector<TokenId> stop_ids;  ///< Ascending. A stop token ends the answer and is not part of it.
  SamplingRule sampling;
  std::vector<TokenBias> biases;  ///< Ascending ids, each once: added to every row's logits.
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t tops = 0;  ///< Alternatives that are reported of a written token; at most kTopReportedMax.
  DecodingRule decoding;
  std::optional<Resumption> resumption;  ///< Where to go on; else at the prompt's end. CheckResumption() is OK.
};

/// Where the answer's positions end at the beginning, and where they can end at most.
int32_t AnswerEndAtFirst(const SequenceSpec& spec);
int32_t AnswerEndMax(const SequenceSpec& spec);

ProcedureContext ContextOf(const SequenceSpec& spec);

/// InvalidArgument unless the suffix, the fixed tokens and the draft fit the answer and leave something to be decided.
/// The rest of `spec`, and the token ids, are valid.
absl::Status CheckInfill(const SequenceSpec& spec);

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
  bool denoise = false;  ///< The choices of asked() are wanted. Else prefill only.
  bool repeats =
      false;  ///< While the block stays open the next step has the same rows: a device may run it on its own.
  /// Twins of the open block's rows that only they themselves see; their keys stand behind `keys`.
  int32_t shadow_rows = 0;

  int32_t keys_held() const { return keys + shadow_rows; }
};

/// One written token; the mask id: it is masked again. `confidence` is what the rule ranks by, mostly a probability.
struct TokenCommit {
  int32_t position = 0;
  TokenId token = 0;
  float confidence = 0.0f;
  float log_probability = 0.0f;
  std::vector<TopLogit> top;  ///< Descending, with log-probabilities for logits; when SequenceSpec::tops asks for them.
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
/// its own. With the shift that forward has the clean rows alone: its last row predicts the block's first position,
/// which is written at once. On the canvas grid clean rows are causal, and the open block sees all of them and itself.
/// After the prompt's grid (bidirectional families) every step runs the whole canvas, unless a cache is asked for: then
/// only the first one of a block does (with the shift it writes the block's first position alone), and the others run
/// what the cache does not keep.
///
/// The sequence ends when a stop token of the answer has no mask before it (at once, also within a block: what comes
/// before it can no longer change; with a procedure that edits, when its block closes), else with the block that holds
/// the last wanted token, which is decoded whole.
class Sequence {
 public:
  explicit Sequence(SequenceSpec spec);
  Sequence(const Sequence& other);
  Sequence(Sequence&&) = default;
  Sequence& operator=(Sequence&&) = default;

  const SequenceSpec& spec() const { return spec_; }
  absl::Span<const TokenId> canvas() const { return canvas_; }
  int32_t prompt_tokens() const { return prompt_; }
  bool guided() const { return spec_.decoding.guidance_scale > 0.0f; }  ///< A twin segment of guide rows is wanted.
  /// The id that the next forward sees at `position`.
  TokenId InputAt(int32_t position) const;
  /// The same of the guide rows: prompt positions are masked.
  TokenId GuideInputAt(int32_t position) const { return position < prompt_ ? spec_.mask_id : InputAt(position); }

  /// Most rows that one step can need at once, guide and shadow rows included: a smaller budget could never run this
  /// sequence.
  int32_t rows_needed_max() const;
  /// Most positions that it can ever hold keys of, shadow rows included, without the guide's.
  int32_t keys_needed_max() const;
  /// Clean rows in front of the open block still to be prefilled; a multiple of prefill_unit(). 0 once denoising has
  /// begun, until DropKv().
  int32_t prefill_rows() const;
  /// Prefill is cut at multiples of it.
  int32_t prefill_unit() const;
  /// The KV of positions below it is in the cache, computed from clean rows. Always 0 after the prompt's grid.
  int32_t written() const { return written_; }
  /// The KV of positions below it can be taken from a cache.
  int32_t cacheable_before() const;
  /// The KV of positions below `positions`, a multiple of prefill_unit() and at most cacheable_before(), was found in a
  /// cache. Right after construction or DropKv().
  void TakeCached(int32_t positions);
  /// True between the forwards of a block that leave more on the device than clean keys and values: DropKv() must wait.
  bool must_keep_kv() const;
  /// The cache has lost the sequence: what is before the open block will be prefilled again. Changes no token.
  void DropKv();
  /// Rows of the next denoising segment, all clean rows before the open block, guide and shadow rows included.
  int32_t denoise_rows() const;
  /// Keys that it needs places for, without the guide's.
  int32_t denoise_keys() const;
  /// The segment for at most `rows` rows (a guide's rows count): the denoising segment when it fits, else some prefill.
  /// Requires: rows >= denoise_rows(), or prefill is left and rows >= prefill_unit().
  Segment Next(int32_t rows) const;

  /// The rows whose choices the next denoising step wants, by ascending position, shadow rows last. Of a rank policy:
  /// the masked positions of the open block.
  absl::Span<const RowAsk> asked() const { return asked_; }
  /// The row, named by its own position, that predicts `position`.
  int32_t PredictorOf(int32_t position) const { return spec_.shift && position > 0 ? position - 1 : position; }
  /// The first position of the answer that holds a stop token, with masks before it: the answer ends when these are
  /// filled. -1: there is none, or blocks are finished in any case.
  int32_t NextStop() const;
  /// How the rows of asked() are decided; Policy::kHost: not by the device.
  BlockRule rule() const;
  /// A denoising step commits at least so many tokens from now on (BlockRule::commits_min); 0: what the policy says.
  void set_commits_min(int32_t commits_min) { commits_min_ = commits_min; }
  /// Tokens that rank last.
  absl::Span<const TokenId> distrusted() const;
  /// Where the draw of a position's token happens in the next denoising step.
  DrawPlace PlaceOf(int32_t position) const;
  /// Appends what is added to the logits of `ask`'s row, ascending ids, each once: biases, penalties, and what the
  /// procedure adds.
  void AppendBiases(const RowAsk& ask, std::vector<TokenBias>& biases) const;
  /// RowChoice tops are wanted of the rows of asked().
  bool wants_tops() const { return spec_.tops > 0 || procedure_->wants_tops(); }
  bool wants_history() const { return procedure_->wants_history(); }
  bool conditioned() const { return procedure_->conditioned(); }

  /// Takes the results of a prefill segment.
  void ApplyPrefill(const Segment& segment);
  /// Takes the results of a denoising segment: choices[i] is for asked()[i], as are tops[kTopReportedMax * i …] when
  /// wants_tops(). Not after an end.
  StepOutcome ApplyDenoise(const Segment& segment, absl::Span<const RowChoice> choices,
                           absl::Span<const TopLogit> tops = {});
  /// Its time is over: what is committed before the first mask is the answer. Not after an end.
  StepOutcome EndAtDeadline();

  int32_t forwards() const { return forwards_; }              ///< Denoising forwards so far.
  int32_t block_forwards() const { return block_forwards_; }  ///< Those of the open block.
  int32_t block() const { return block_; }
  int32_t open_block_start() const { return first_; }
  int32_t open_block_end() const { return end_; }
  /// Who goes on elsewhere begins at the open block: it has state that the tokens do not tell.
  bool stateful() const { return spec_.decoding.cache != Cache::kNone || procedure_->stateful(); }
  /// Steps also write behind the open block: who goes on elsewhere needs these tokens, too.
  bool writes_ahead() const { return procedure_->writes_ahead(); }
  /// Positions of the canvas where their number can change; else 0.
  int32_t grown_length() const { return spec_.decoding.initial_length > 0 ? static_cast<int32_t>(canvas_.size()) : 0; }
  RemainingMasks remaining() const;
  /// Positions below it are final: they never change and belong to prompt or answer.
  int32_t final_before() const { return final_before_; }

 private:
  CanvasView View() const;
  void FillCanvas();
  void OpenBlock(int32_t first);
  void Resume(const Resumption& resumption);
  bool leads() const;
  bool runs_canvas() const;
  bool IsFull() const;
  int32_t answer_end_max() const { return std::max(answer_end_, AnswerEndMax(spec_)); }
  int32_t wanted_end() const { return std::min(prompt_ + spec_.tokens_max, answer_end_); }
  Segment DenoisingSegment() const;
  void AppendPenalties(const RowAsk& ask, std::vector<TokenBias>& biases) const;
  void AskRows();
  int32_t FirstMask() const;
  int32_t FirstStop() const;
  int32_t AnswerEnd() const;
  Decision Decide(absl::Span<const RowChoice> choices, absl::Span<const TopLogit> tops);
  void Write(const Decision& decision, absl::Span<const TopLogit> tops, StepOutcome& outcome);
  void Grow(int32_t positions);
  SequenceEndReason CloseOrEnd(bool keep_open, StepOutcome& outcome);
  SequenceEndReason CloseBlocks();

  SequenceSpec spec_;
  std::unique_ptr<Procedure> procedure_;
  int32_t prompt_ = 0;
  std::vector<TokenId> canvas_;
  std::vector<uint8_t> fixed_;  // [canvas]
  int32_t answer_end_ = 0;      // The suffix follows.
  int32_t tokens_end_ = 0;      // Behind it the answer is masked.
  int32_t written_ = 0;         // KV of positions below it is in the cache and exact (not after the prompt's grid).
  bool prefilling_ = true;      // No denoising forward since the cache had nothing of this.
  int32_t block_ = 0;
  int32_t first_ = 0;  // The open block is [first_, end_).
  int32_t end_ = 0;
  int32_t block_forwards_ = 0;
  std::vector<RowAsk> asked_;
  int32_t forwards_ = 0;
  int32_t final_before_ = 0;
  int32_t commits_min_ = 0;
  bool ended_ = false;
};

}  // namespace quicksilver
