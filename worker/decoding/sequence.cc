#include "worker/decoding/sequence.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace quicksilver {
namespace {

bool Contains(const std::vector<TokenId>& ascending, TokenId id) {
  return std::binary_search(ascending.begin(), ascending.end(), id);
}

int32_t Size(const std::vector<TokenId>& tokens) { return static_cast<int32_t>(tokens.size()); }

}  // namespace

Sequence::Sequence(SequenceSpec spec) : spec_(std::move(spec)) {
  CHECK(spec_.tokens_max > 0 && spec_.decoding.block_length > 0 && spec_.decoding.steps > 0);
  prompt_ = Size(spec_.prompt);
  final_before_ = prompt_;
  FillCanvas();
  procedure_ = MakeProcedure(spec_.decoding, ContextOf(spec_));
  const int32_t length = spec_.decoding.block_length;
  block_ = spec_.grid == BlockGrid::kAbsolute ? prompt_ / length : 0;
  OpenBlock(spec_.grid == BlockGrid::kAbsolute ? block_ * length : prompt_);
  if (spec_.resumption.has_value()) {
    Resume(*spec_.resumption);
    spec_.resumption.reset();
  } else if (IsFull()) {
    CHECK(CloseBlocks() == SequenceEndReason::kNone);
  }
  AskRows();
}

Sequence::Sequence(const Sequence& other)
    : spec_(other.spec_),
      procedure_(other.procedure_->Clone()),
      prompt_(other.prompt_),
      canvas_(other.canvas_),
      fixed_(other.fixed_),
      answer_end_(other.answer_end_),
      tokens_end_(other.tokens_end_),
      written_(other.written_),
      prefilling_(other.prefilling_),
      block_(other.block_),
      first_(other.first_),
      end_(other.end_),
      block_forwards_(other.block_forwards_),
      asked_(other.asked_),
      forwards_(other.forwards_),
      final_before_(other.final_before_),
      commits_min_(other.commits_min_),
      ended_(other.ended_) {}

void Sequence::FillCanvas() {
  const DecodingRule& decoding = spec_.decoding;
  canvas_ = spec_.prompt;
  answer_end_ = AnswerEndAtFirst(spec_);
  if (spec_.resumption.has_value() && spec_.resumption->canvas_length > 0) {
    answer_end_ = spec_.resumption->canvas_length - Size(spec_.suffix);
  }
  CHECK(decoding.initial_length <= spec_.tokens_max && answer_end_ > prompt_);
  canvas_.resize(static_cast<size_t>(answer_end_), spec_.mask_id);
  canvas_.insert(canvas_.end(), spec_.suffix.begin(), spec_.suffix.end());
  fixed_.assign(canvas_.size(), 1);
  std::fill(fixed_.begin() + prompt_, fixed_.begin() + answer_end_, 0);
  tokens_end_ = prompt_;
  for (const bool fix : {false, true}) {
    // On the canvas grid a draft is no more than what the procedure begins with.
    if (!fix && spec_.grid == BlockGrid::kCanvas) continue;
    const std::vector<TokenId>& tokens = fix ? spec_.fixed : spec_.draft;
    for (int32_t i = 0; i < std::min(Size(tokens), answer_end_ - prompt_); ++i) {
      if (tokens[static_cast<size_t>(i)] < 0) continue;
      canvas_[static_cast<size_t>(prompt_ + i)] = tokens[static_cast<size_t>(i)];
      fixed_[static_cast<size_t>(prompt_ + i)] = fix ? 1 : 0;
      tokens_end_ = std::max(tokens_end_, prompt_ + i + 1);
    }
  }
}

void Sequence::Resume(const Resumption& resumption) {
  CHECK(CheckResumption(spec_).ok());
  for (size_t i = 0; i < resumption.tokens.size(); ++i) {
    if (resumption.tokens[i] < 0) continue;
    const size_t position = static_cast<size_t>(prompt_) + i;
    canvas_[position] = resumption.tokens[i];
    tokens_end_ = std::max(tokens_end_, static_cast<int32_t>(position) + 1);
  }
  final_before_ = resumption.final_before;
  const int32_t length = spec_.decoding.block_length;
  const int32_t origin = spec_.grid == BlockGrid::kAbsolute ? 0 : prompt_;
  block_ = (final_before_ - origin) / length;
  forwards_ = resumption.forwards - resumption.block_forwards;
  OpenBlock(origin + block_ * length);
  forwards_ = resumption.forwards;
  block_forwards_ = resumption.block_forwards;
  if (block_forwards_ == 0 && IsFull()) {
    CHECK(CloseBlocks() == SequenceEndReason::kNone);
  }
}

CanvasView Sequence::View() const {
  CanvasView view;
  view.tokens = canvas_;
  view.fixed = fixed_;
  view.mask_id = spec_.mask_id;
  view.answer_first = prompt_;
  view.answer_end = answer_end_;
  view.block = block_;
  view.first = first_;
  view.end = end_;
  view.forwards = forwards_;
  view.block_forwards = block_forwards_;
  view.commits_min = commits_min_;
  return view;
}

void Sequence::OpenBlock(int32_t first) {
  first_ = first;
  end_ = std::min(first + spec_.decoding.block_length, answer_end_);
  block_forwards_ = 0;
  // Rows of a whole canvas may be many: its clean ones need not go in front of the next one's.
  if (spec_.grid == BlockGrid::kCanvas) prefilling_ = true;
  procedure_->OpenBlock(View());
}

// Nothing is to be decided in the open block, and nothing can be edited.
bool Sequence::IsFull() const {
  if (FirstMask() < end_) return false;
  const auto begin = fixed_.begin() + std::max(first_, prompt_);
  return !procedure_->edits() || std::find(begin, fixed_.begin() + end_, 0) == fixed_.begin() + end_;
}

// The last rows of the clean blocks predict the open block's first position, which is written by itself.
bool Sequence::leads() const {
  if (!spec_.shift || first_ == 0 || canvas_[static_cast<size_t>(first_)] != spec_.mask_id) return false;
  if (spec_.grid == BlockGrid::kAbsolute) return true;
  return spec_.decoding.cache != Cache::kNone && block_forwards_ == 0;
}

void Sequence::AskRows() {
  asked_.clear();
  if (ended_) return;
  if (leads()) {
    asked_.push_back({first_});
  } else {
    procedure_->Ask(View(), asked_);
  }
  CHECK(!asked_.empty());
}

TokenId Sequence::InputAt(int32_t position) const {
  if (position < first_ || position >= end_ || fixed_[static_cast<size_t>(position)] != 0) {
    return canvas_[static_cast<size_t>(position)];
  }
  return procedure_->Input(View(), position);
}

DrawPlace Sequence::PlaceOf(int32_t position) const {
  return {spec_.sampling.seed, spec_.sampling.choice, static_cast<uint32_t>(position),
          static_cast<uint32_t>(forwards_)};
}

int32_t Sequence::FirstMask() const {
  const auto begin = canvas_.begin() + std::max(final_before_, prompt_), end = canvas_.begin() + answer_end_;
  return static_cast<int32_t>(std::find(begin, end, spec_.mask_id) - canvas_.begin());
}

int32_t Sequence::FirstStop() const {
  const int32_t end = std::min(tokens_end_, wanted_end());
  for (int32_t p = final_before_; p < end; ++p) {
    if (Contains(spec_.stop_ids, canvas_[static_cast<size_t>(p)])) return p;
  }
  return -1;
}

int32_t Sequence::NextStop() const { return spec_.decoding.finish_blocks || procedure_->edits() ? -1 : FirstStop(); }

BlockRule Sequence::rule() const {
  BlockRule rule;
  const std::optional<BlockRule> device = leads() ? std::nullopt : procedure_->DeviceRule(View());
  if (device.has_value()) {
    rule = *device;
  } else {
    rule.policy = Policy::kHost;
    rule.sampling = spec_.sampling;
    rule.sampling.temperature = procedure_->Temperature(View(), spec_.sampling.temperature);
    rule.raw_confidence = spec_.decoding.raw_confidence;
    rule.measure = spec_.decoding.measure;
  }
  rule.top_reported = procedure_->wants_tops() ? kTopReportedMax : spec_.tops;
  return rule;
}

RemainingMasks Sequence::remaining() const {
  const auto first = canvas_.begin() + std::max(first_, prompt_), end = canvas_.begin() + end_;
  return {static_cast<int32_t>(std::count(first, end, spec_.mask_id)), answer_end_ - end_, spec_.decoding.block_length};
}

absl::Span<const TokenId> Sequence::distrusted() const {
  if (!spec_.decoding.distrust_eos) return {};
  return spec_.decoding.eos_ids;
}

Decision Sequence::Decide(absl::Span<const RowChoice> choices, absl::Span<const TopLogit> tops) {
  if (!leads()) {
    StepNumbers numbers;
    numbers.choices = choices;
    std::vector<TopLogit> logits;
    if (procedure_->wants_tops()) {
      // Procedures reckon with logits, everybody else with log-probabilities.
      logits.assign(tops.begin(), tops.end());
      for (size_t i = 0; i < logits.size(); ++i) {
        const double log_sum_exp = choices[i / kTopReportedMax].log_sum_exp;
        if (logits[i].id >= 0) logits[i].logit = static_cast<float>(logits[i].logit + log_sum_exp);
      }
      numbers.tops = logits;
    }
    return procedure_->Decide(View(), numbers);
  }
  Decision decision;
  const BlockRule rule = this->rule();
  decision.writes.push_back(
      {first_, choices[0].token, RankOf(rule, choices[0], DrawPlace(), TokenList()), choices[0].log_probability});
  return decision;
}

void Sequence::Write(const Decision& decision, absl::Span<const TopLogit> tops, StepOutcome& outcome) {
  int32_t last = -1;
  size_t row = 0;
  for (const TokenWrite& write : decision.writes) {
    CHECK(write.position > last && write.position < answer_end_ && fixed_[static_cast<size_t>(write.position)] == 0);
    CHECK(write.position >= final_before_);
    last = write.position;
    canvas_[static_cast<size_t>(write.position)] = write.token;
    TokenCommit commit = {write.position, write.token, write.confidence, write.log_probability, {}};
    while (row < asked_.size() && asked_[row].position < write.position && !asked_[row].shadow) ++row;
    if (spec_.tops > 0 && write.token != spec_.mask_id && row < asked_.size() &&
        asked_[row].position == write.position) {
      for (int32_t i = 0; i < spec_.tops; ++i) {
        const TopLogit& top = tops[row * kTopReportedMax + static_cast<size_t>(i)];
        if (top.id >= 0) commit.top.push_back(top);
      }
    }
    outcome.commits.push_back(std::move(commit));
  }
  tokens_end_ = std::max(tokens_end_, last + 1);
}

void Sequence::Grow(int32_t positions) {
  if (positions == 0) return;
  CHECK(positions > 0 && spec_.decoding.initial_length > 0);
  canvas_.insert(canvas_.begin() + answer_end_, static_cast<size_t>(positions), spec_.mask_id);
  fixed_.insert(fixed_.begin() + answer_end_, static_cast<size_t>(positions), 0);
  answer_end_ += positions;
  end_ = std::min(first_ + spec_.decoding.block_length, answer_end_);
  CHECK(answer_end_ <= answer_end_max());
}

StepOutcome Sequence::ApplyDenoise(const Segment& segment, absl::Span<const RowChoice> choices,
                                   absl::Span<const TopLogit> tops) {
  CHECK(!ended_ && segment.denoise && choices.size() == asked_.size());
  StepOutcome outcome;
  outcome.block = block_;
  // The open block's KV is of a canvas with masks: only what lies before it counts as written.
  if (spec_.grid != BlockGrid::kAfterPrompt) written_ = first_;
  prefilling_ = false;
  const bool finite = std::all_of(choices.begin(), choices.end(), [](const RowChoice& c) { return c.finite; });
  if (!finite) {
    ++forwards_;
    ended_ = true;
    outcome.end = SequenceEndReason::kNumericalError;
    return outcome;
  }
  const Decision decision = Decide(choices, tops);
  ++forwards_;
  ++block_forwards_;
  outcome.paced = decision.paced;
  Grow(decision.grown);
  Write(decision, tops, outcome);
  outcome.end = CloseOrEnd(decision.keep_open, outcome);
  ended_ = outcome.end != SequenceEndReason::kNone;
  AskRows();
  return outcome;
}

StepOutcome Sequence::EndAtDeadline() {
  CHECK(!ended_);
  ended_ = true;
  StepOutcome outcome;
  outcome.block = block_;
  outcome.end = SequenceEndReason::kDeadline;
  final_before_ = std::min(AnswerEnd(), std::min(FirstMask(), wanted_end()));
  return outcome;
}

// The position of the first stop token of the answer that has no mask before it, or the end of the wanted tokens.
int32_t Sequence::AnswerEnd() const {
  const int32_t stop = FirstStop();
  return stop < 0 || FirstMask() < stop ? wanted_end() : stop;
}

SequenceEndReason Sequence::CloseOrEnd(bool keep_open, StepOutcome& outcome) {
  outcome.block_closed = !keep_open && FirstMask() >= end_;
  if (outcome.block_closed) return CloseBlocks();
  const int32_t answer_end = AnswerEnd();
  if (answer_end < wanted_end() && !spec_.decoding.finish_blocks && !procedure_->edits()) {
    outcome.block_closed = true;
    final_before_ = answer_end;
    return SequenceEndReason::kStop;
  }
  return block_forwards_ >= procedure_->steps_max(end_ - first_) ? SequenceEndReason::kStuck : SequenceEndReason::kNone;
}

// The open block has no mask and is done with, and so may be those behind it.
SequenceEndReason Sequence::CloseBlocks() {
  while (true) {
    const int32_t answer_end = AnswerEnd();
    if (answer_end < std::min(end_, wanted_end())) {
      final_before_ = answer_end;
      return SequenceEndReason::kStop;
    }
    final_before_ = std::min(end_, wanted_end());
    if (final_before_ == wanted_end()) return SequenceEndReason::kLength;
    ++block_;
    OpenBlock(end_);
    if (!IsFull()) return SequenceEndReason::kNone;
    prefilling_ = true;
  }
}

}  // namespace quicksilver
