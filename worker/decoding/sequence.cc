#include "worker/decoding/sequence.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace quicksilver {
namespace {

// Forwards that a block may take beyond one a position; reaching it is a bug in a rule.
constexpr int32_t kBlockForwardsSlack = 2;

}  // namespace

Sequence::Sequence(SequenceSpec spec) : spec_(std::move(spec)) {
  CHECK(spec_.tokens_max > 0 && spec_.decoding.block_length > 0 && spec_.decoding.steps > 0);
  prompt_ = static_cast<int32_t>(spec_.prompt.size());
  canvas_ = spec_.prompt;
  const int32_t length =
      CanvasLength(spec_.grid, prompt_, spec_.tokens_max, spec_.decoding.block_length, spec_.positions_max);
  canvas_.resize(static_cast<size_t>(length), spec_.mask_id);
  final_before_ = prompt_;
  OpenBlock(spec_.grid == BlockGrid::kAbsolute ? prompt_ / spec_.decoding.block_length : 0);
  if (spec_.resumption.has_value()) {
    Resume(*spec_.resumption);
    spec_.resumption.reset();
  }
}

void Sequence::Resume(const Resumption& resumption) {
  CHECK(CheckResumption(spec_).ok());
  for (size_t i = 0; i < resumption.tokens.size(); ++i) {
    if (resumption.tokens[i] >= 0) canvas_[static_cast<size_t>(prompt_) + i] = resumption.tokens[i];
  }
  final_before_ = resumption.final_before;
  const int32_t origin = spec_.grid == BlockGrid::kAbsolute ? 0 : prompt_;
  OpenBlock((final_before_ - origin) / spec_.decoding.block_length);
  std::erase_if(masked_, [this](int32_t p) { return canvas_[static_cast<size_t>(p)] != spec_.mask_id; });
  forwards_ = resumption.forwards;
  block_forwards_ = resumption.block_forwards;
}

int32_t Sequence::BlockStart(int32_t block) const {
  const int32_t origin = spec_.grid == BlockGrid::kAbsolute ? 0 : prompt_;
  return origin + block * spec_.decoding.block_length;
}

int32_t Sequence::BlockEnd(int32_t block) const {
  return std::min(BlockStart(block + 1), static_cast<int32_t>(canvas_.size()));
}

void Sequence::OpenBlock(int32_t block) {
  block_ = block;
  block_forwards_ = 0;
  masked_.clear();
  for (int32_t p = std::max(BlockStart(block), prompt_); p < BlockEnd(block); ++p) masked_.push_back(p);
}

int32_t Sequence::rows_needed_max() const {
  const int32_t length = static_cast<int32_t>(canvas_.size());
  if (spec_.grid == BlockGrid::kAbsolute) return std::min(length, 2 * spec_.decoding.block_length);
  return guided() ? 2 * length : length;
}

int32_t Sequence::prefill_rows() const {
  if (spec_.grid != BlockGrid::kAbsolute || !prefilling_) return 0;
  return BlockStart(block_) - written_;
}

void Sequence::TakeCached(int32_t positions) {
  CHECK(spec_.grid == BlockGrid::kAbsolute && prefilling_ && written_ == 0);
  CHECK(positions % spec_.decoding.block_length == 0 && positions <= BlockStart(block_));
  written_ = positions;
}

void Sequence::DropKv() {
  written_ = 0;
  prefilling_ = true;
}

int32_t Sequence::denoise_rows() const {
  if (spec_.grid == BlockGrid::kAbsolute) return BlockEnd(block_) - written_;
  return rows_needed_max();
}

Segment Sequence::Next(int32_t rows) const {
  CHECK(!ended_);
  Segment segment;
  if (spec_.grid != BlockGrid::kAbsolute) {
    CHECK(rows >= denoise_rows());
    segment.rows = segment.keys = static_cast<int32_t>(canvas_.size());
    segment.denoise = true;
    return segment;
  }
  segment.first_position = written_;
  segment.denoise = rows >= denoise_rows();
  segment.rows = segment.denoise
                     ? denoise_rows()
                     : std::min(prefill_rows(), rows / spec_.decoding.block_length * spec_.decoding.block_length);
  CHECK(segment.rows > 0);
  segment.keys = segment.first_position + segment.rows;
  return segment;
}

DrawPlace Sequence::PlaceOf(int32_t position) const {
  return {spec_.sampling.seed, spec_.sampling.choice, static_cast<uint32_t>(position),
          static_cast<uint32_t>(forwards_)};
}

void Sequence::ApplyPrefill(const Segment& segment) {
  CHECK(!segment.denoise && segment.first_position == written_);
  written_ += segment.rows;
  CHECK(written_ <= BlockStart(block_));
}

// Nothing behind the open block is written yet.
int32_t Sequence::FirstStop() const {
  const int32_t end = std::min(BlockEnd(block_), prompt_ + spec_.tokens_max);
  for (int32_t p = final_before_; p < end; ++p) {
    if (std::binary_search(spec_.stop_ids.begin(), spec_.stop_ids.end(), canvas_[static_cast<size_t>(p)])) return p;
  }
  return -1;
}

int32_t Sequence::NextStop() const { return spec_.finish_blocks ? -1 : FirstStop(); }

BlockRule Sequence::rule() const {
  const DecodingRule& decoding = spec_.decoding;
  BlockRule rule;
  rule.sampling = spec_.sampling;
  rule.raw_confidence = decoding.raw_confidence;
  rule.policy = decoding.policy;
  rule.remasking = decoding.remasking;
  rule.threshold = decoding.threshold;
  rule.masks = decoding.block_length;
  rule.steps = decoding.steps;
  rule.commits_min = commits_min_;
  if (spec_.grid == BlockGrid::kAfterPrompt) {
    const int32_t answer = static_cast<int32_t>(canvas_.size()) - prompt_;
    const int32_t blocks = (answer + decoding.block_length - 1) / decoding.block_length;
    rule.masks = BlockEnd(block_) - BlockStart(block_);
    rule.steps = std::clamp(ScheduledCount(decoding.steps, blocks, block_), 1, rule.masks);
  }
  return rule;
}

RemainingMasks Sequence::remaining() const {
  return {static_cast<int32_t>(masked_.size()), static_cast<int32_t>(canvas_.size()) - BlockEnd(block_),
          spec_.decoding.block_length};
}

absl::Span<const TokenId> Sequence::distrusted() const {
  if (!spec_.decoding.distrust_eos) return {};
  return spec_.eos_ids;
}

std::vector<uint8_t> Sequence::SelectRows(absl::Span<const RowChoice> choices, bool& paced) const {
  BlockRule block = rule();
  const TokenList last = {distrusted().data(), static_cast<int32_t>(distrusted().size())};
  std::vector<float> rank(choices.size());
  const RankedRows rows = {rank.data(), masked_.data(), static_cast<int32_t>(choices.size())};
  int32_t above = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    rank[i] = RankOf(block, choices[i], PlaceOf(masked_[i]), last);
    above += rank[i] > block.threshold ? 1 : 0;
  }
  const int32_t count = ScheduledNow(block, block_forwards_);
  block.commits_min = 0;
  const int32_t unpaced_count = ScheduledNow(block, block_forwards_);
  std::vector<uint8_t> commit(choices.size());
  paced = false;
  for (int32_t i = 0; i < rows.rows; ++i) {
    const bool selected = IsSelected(block, rows, i, count, above);
    commit[static_cast<size_t>(i)] = selected ? 1 : 0;
    if (!selected || count == unpaced_count) continue;
    paced = paced || !IsSelected(block, rows, i, unpaced_count, above);
  }
  return commit;
}

StepOutcome Sequence::ApplyDenoise(const Segment& segment, absl::Span<const RowChoice> choices) {
  CHECK(!ended_ && segment.denoise && choices.size() == masked_.size());
  StepOutcome outcome;
  outcome.block = block_;
  // The open block's KV is of a canvas with masks: only what lies before it counts as written.
  if (spec_.grid == BlockGrid::kAbsolute) written_ = BlockStart(block_);
  prefilling_ = false;
  const bool finite = std::all_of(choices.begin(), choices.end(), [](const RowChoice& c) { return c.finite; });
  if (!finite) {
    ++forwards_;
    ended_ = true;
    outcome.end = SequenceEndReason::kNumericalError;
    return outcome;
  }
  const std::vector<uint8_t> commit = SelectRows(choices, outcome.paced);
  ++forwards_;
  ++block_forwards_;
  size_t left = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    const int32_t position = masked_[i];
    if (commit[i] == 0) {
      masked_[left++] = position;
      continue;
    }
    canvas_[static_cast<size_t>(position)] = choices[i].token;
    outcome.commits.push_back({position, choices[i].token, choices[i].confidence, choices[i].log_probability});
  }
  masked_.resize(left);
  outcome.end = CloseOrEnd(outcome);
  ended_ = outcome.end != SequenceEndReason::kNone;
  return outcome;
}

StepOutcome Sequence::EndAtDeadline() {
  CHECK(!ended_);
  ended_ = true;
  StepOutcome outcome;
  outcome.block = block_;
  outcome.end = SequenceEndReason::kDeadline;
  // A block is open, so there is a mask; and a stop token before it would have ended the sequence, unless blocks are
  // finished in any case.
  final_before_ = std::min(AnswerEnd(), masked_.front());
  return outcome;
}

// The position of the first stop token of the answer that has no mask before it, or the end of the wanted tokens.
int32_t Sequence::AnswerEnd() const {
  const int32_t stop = FirstStop();
  const bool masked_before = !masked_.empty() && masked_.front() < stop;
  return stop < 0 || masked_before ? prompt_ + spec_.tokens_max : stop;
}

SequenceEndReason Sequence::CloseOrEnd(StepOutcome& outcome) {
  outcome.block_closed = masked_.empty();
  const int32_t wanted = prompt_ + spec_.tokens_max;
  const int32_t answer_end = AnswerEnd();
  const bool stopped = answer_end < wanted && (outcome.block_closed || !spec_.finish_blocks);
  if (stopped) {
    outcome.block_closed = true;
    final_before_ = answer_end;
    return SequenceEndReason::kStop;
  }
  if (!outcome.block_closed) {
    const int32_t forwards_max = spec_.decoding.block_length + kBlockForwardsSlack;
    return block_forwards_ >= forwards_max ? SequenceEndReason::kStuck : SequenceEndReason::kNone;
  }
  final_before_ = std::min(BlockEnd(block_), wanted);
  if (final_before_ == wanted) return SequenceEndReason::kLength;
  OpenBlock(block_ + 1);
  return SequenceEndReason::kNone;
}

}  // namespace quicksilver
