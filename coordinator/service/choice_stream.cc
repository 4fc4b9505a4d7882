#include "coordinator/service/choice_stream.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/service/decoding_proto.h"

namespace quicksilver {
namespace {

constexpr int32_t kMasked = -1;

}  // namespace

ChoiceStream::ChoiceStream(const TextModel& text, ChoiceSettings settings)
    : text_(text),
      settings_(std::move(settings)),
      end_(settings_.prompt_tokens + settings_.max_tokens),
      answer_(text, settings_.stops, settings_.log_probabilities),
      final_before_(settings_.prompt_tokens),
      extent_(settings_.prompt_tokens) {
  TakeGiven(0);
}

void ChoiceStream::TakeGiven(size_t from) {
  for (const auto* given : {&settings_.draft, &settings_.given}) {
    if (given == &settings_.draft && settings_.grid == v1::GRID_CANVAS) continue;
    for (size_t i = from; i < given->size(); ++i) {
      if ((*given)[i] == kMasked) continue;
      tokens_.resize(std::max(tokens_.size(), i + 1), kMasked);
      tokens_[i] = (*given)[i];
    }
  }
}

void ChoiceStream::OnPlaced(bool resumes, absl::Duration now) {
  placed_ = std::min(placed_, now);
  resumes_ += resumes ? 1 : 0;
  replace_next_ = true;
  if (block_state_) ForgetOpenBlock();
}

// The next group begins the block anew.
void ChoiceStream::ForgetOpenBlock() {
  const size_t kept = final_before_ - settings_.prompt_tokens;
  if (tokens_.size() > kept) tokens_.resize(kept);
  if (scores_.size() > kept) scores_.resize(kept);
  TakeGiven(kept);
  fresh_.clear();
  extent_ = final_before_;
  step_ -= std::min(block_step_, step_);
  block_step_ = 0;
  canvas_length_ = block_canvas_length_;
  block_state_ = false;
}

absl::Status ChoiceStream::Apply(const v1::SequenceUpdate& update, uint64_t epoch, absl::Duration now,
                                 std::vector<ChoiceEvent>& events) {
  if (finished_) return absl::OkStatus();
  epoch_ = epoch;
  step_ = update.step();
  block_step_ = update.block_step();
  block_ = update.block();
  block_state_ = update.block_state();
  if (update.canvas_length() > 0) canvas_length_ = update.canvas_length();
  if (block_step_ == 0) block_canvas_length_ = canvas_length_;
  RETURN_IF_ERROR(TakeCommits(update, now));
  const uint32_t was_final = final_before_;
  uint32_t final_before = std::max(update.final_before(), final_before_);
  if (update.has_end()) {
    final_before = std::max(final_before, settings_.prompt_tokens + update.end().completion_tokens());
  }
  RETURN_IF_ERROR(Finalise(std::min(final_before, end_)));
  if (stopped_here_ || update.has_end()) {
    Finish(update, now, events);
    return absl::OkStatus();
  }
  const std::string released = AppendDelta(events);
  const bool due = final_before_ > was_final || now - last_frame_ >= settings_.canvas_interval;
  if (settings_.canvases && due) {
    last_frame_ = now;
    AppendFrame(released, events);
  }
  return absl::OkStatus();
}

absl::Status ChoiceStream::TakeCommits(const v1::SequenceUpdate& update, absl::Duration now) {
  for (const v1::Commit& commit : update.commits()) {
    const uint32_t position = commit.position();
    if (position < settings_.prompt_tokens || position >= settings_.positions_max) {
      return absl::InternalError(absl::StrCat("commit at position ", position, " of a canvas from ",
                                              settings_.prompt_tokens, " to ", settings_.positions_max));
    }
    const uint32_t index = position - settings_.prompt_tokens;
    if (index >= tokens_.size()) tokens_.resize(index + 1, kMasked);
    if (position < final_before_ && tokens_[index] != commit.token()) {
      return absl::InternalError(absl::StrCat("final position ", position, " changed"));
    }
    if (commit.token() < kMasked) {
      return absl::InternalError(absl::StrCat("token ", commit.token(), " at position ", position));
    }
    if (position >= final_before_) Write(index, commit);
    first_commit_ = std::min(first_commit_, now);
  }
  extent_ = std::clamp(CanvasEnd(), extent_, std::max(end_, extent_));
  return absl::OkStatus();
}

void ChoiceStream::Write(uint32_t index, const v1::Commit& commit) {
  if (commit.token() == kMasked) {
    replace_next_ = true;  // A run that a client has is no longer whole.
  } else {
    if (settings_.canvases && tokens_[index] != commit.token()) fresh_.push_back(index);
    extent_ = std::max(extent_, std::min(settings_.prompt_tokens + index + 1, end_));
  }
  tokens_[index] = commit.token();
  if (!settings_.log_probabilities) return;
  if (index >= scores_.size()) scores_.resize(index + 1);
  scores_[index] = {commit.log_probability(), {commit.top().begin(), commit.top().end()}};
}

// Where the canvas ends that there is by now.
uint32_t ChoiceStream::CanvasEnd() const {
  if (canvas_length_ > settings_.suffix_tokens) return std::min(canvas_length_ - settings_.suffix_tokens, end_);
  if (settings_.grid == v1::GRID_AFTER_PROMPT) return end_;
  const uint64_t origin = settings_.grid == v1::GRID_CANVAS ? settings_.prompt_tokens : 0;
  return static_cast<uint32_t>(std::min<uint64_t>(origin + (uint64_t{block_} + 1) * settings_.block_length, end_));
}

v1::Checkpoint ChoiceStream::Record() const {
  v1::Checkpoint record;
  record.set_step(step_);
  record.set_block_step(block_step_);
  record.set_final_before(final_before_);
  record.mutable_tokens()->Add(tokens_.begin(), tokens_.end());
  record.set_canvas_length(canvas_length_);
  return record;
}

absl::Status ChoiceStream::Finalise(uint32_t before) {
  for (; final_before_ < before && !stopped_here_; ++final_before_) {
    const uint32_t index = final_before_ - settings_.prompt_tokens;
    if (text_over_) continue;
    if (IsMasked(index)) return absl::InternalError(absl::StrCat("final position ", final_before_, " has no token"));
    PushFinal(tokens_[index]);
  }
  return absl::OkStatus();
}

void ChoiceStream::PushFinal(int32_t token) {
  if (std::find(settings_.stop_ids.begin(), settings_.stop_ids.end(), token) != settings_.stop_ids.end()) {
    text_over_ = true;
    return;
  }
  answer_.Push(token);
  stopped_here_ = answer_.stopped();
}

WrittenToken ChoiceStream::Told(uint32_t index, uint64_t offset) const {
  const auto make = [this](int32_t id, float log_probability) {
    // Also what is no number.
    const bool known = log_probability >= kNoLogProbability && log_probability <= 0.0f;
    return AlternativeToken{id, std::string(text_.TokenBytes(id)), known ? log_probability : kNoLogProbability};
  };
  const Score none;
  const Score& score = index < scores_.size() ? scores_[index] : none;
  WrittenToken told{.token = make(tokens_[index], score.log_probability), .offset = offset};
  for (const v1::TopToken& top : score.top) told.top.push_back(make(top.id(), top.log_probability()));
  return told;
}

std::string ChoiceStream::AppendDelta(std::vector<ChoiceEvent>& events) {
  ChoiceText::Piece piece = answer_.Take();
  if (piece.text.empty() && piece.offsets.empty()) return "";
  DeltaEvent delta{settings_.choice, piece.text, block_, step_};
  for (const uint64_t offset : piece.offsets) delta.tokens.push_back(Told(told_++, offset));
  events.emplace_back(std::move(delta));
  return std::move(piece.text);
}

void ChoiceStream::Finish(const v1::SequenceUpdate& update, absl::Duration now, std::vector<ChoiceEvent>& events) {
  answer_.Finish();
  const std::string released = AppendDelta(events);
  text_over_ = true;
  finished_ = true;
  if (settings_.canvases) AppendFrame(released, events);
  events.emplace_back(MakeFinished(update, answer_.stopped(), now));
  if (update.has_end()) stopped_here_ = false;  // Nothing is left to be cancelled.
}

FinishedEvent ChoiceStream::MakeFinished(const v1::SequenceUpdate& update, bool stopped, absl::Duration now) const {
  const v1::SequenceEnd& end = update.end();
  const bool cut = end.reason() == v1::SequenceEnd::REASON_LENGTH || end.reason() == v1::SequenceEnd::REASON_DEADLINE;
  // The last group counts what it did itself; the others were lost with their counts, or cancelled.
  const bool whole = resumes_ == 0;
  FinishedEvent finished{.choice = settings_.choice,
                         .reason = cut && !stopped ? FinishReason::kLength : FinishReason::kStop,
                         .completion_tokens = completion_tokens(),
                         .forwards = update.has_end() ? end.forwards() : step_,
                         .cached_tokens = whole ? end.cached_tokens() : 0,
                         .resumes = resumes_,
                         .preemptions = whole ? end.preemptions() : 0,
                         .paced_steps = whole ? end.paced_steps() : 0,
                         .deadline_reached = end.reason() == v1::SequenceEnd::REASON_DEADLINE,
                         .policy = NameOf(kPolicyNames, update.policy()),
                         .cache = NameOf(kCacheNames, update.cache())};
  if (first_commit_ != absl::InfiniteDuration()) {
    finished.time_to_first_token_seconds = absl::ToDoubleSeconds(first_commit_ - settings_.accepted);
  }
  // Without one worker's word for all of it the prefills, and what passed between groups, are counted in.
  finished.decode_seconds = update.has_end() && whole ? end.decode_seconds() : absl::ToDoubleSeconds(now - placed_);
  return finished;
}

// Of a token behind the committed ones.
bool ChoiceStream::IsMasked(uint32_t index) const { return index >= tokens_.size() || tokens_[index] == kMasked; }

// The run of provisional tokens that begins at `first`. What may still become a stop string is one, too: it has not
// been sent and may be taken back.
FrameSpan ChoiceStream::RunAt(uint32_t first, uint32_t committed, uint32_t extent) const {
  FrameSpan run{.op = SpanOp::kCommit, .first = first};
  const bool leads = first == committed;
  // A character that final tokens began goes on here.
  Detokenizer detokenizer = leads ? answer_.detokenizer() : Detokenizer(text_);
  if (leads) run.text = answer_.held();
  for (uint32_t index = first; index < extent && !IsMasked(index); ++index) {
    if (index >= completion_tokens()) run.text += detokenizer.Push(tokens_[index]);
    ++run.tokens;
  }
  run.text += detokenizer.Finish();
  return run;
}

void ChoiceStream::AppendFrame(const std::string& released, std::vector<ChoiceEvent>& events) {
  const uint32_t committed = answer_.taken();
  const uint32_t extent = text_over_ ? completion_tokens() : extent_ - settings_.prompt_tokens;
  FrameEvent frame{.choice = settings_.choice,
                   .step = step_,
                   .block = block_,
                   .epoch = epoch_,
                   .committed = committed,
                   .extent = extent};
  const bool final_moved = committed > framed_committed_ || !released.empty();
  if (final_moved) {
    frame.spans.push_back({SpanOp::kFinal, framed_committed_, committed - framed_committed_, released});
  }
  std::sort(fresh_.begin(), fresh_.end());
  bool replaced = false;
  for (uint32_t index = committed; index < extent;) {
    if (IsMasked(index)) {
      ++index;
      continue;
    }
    FrameSpan run = RunAt(index, committed, extent);
    const auto fresh = std::lower_bound(fresh_.begin(), fresh_.end(), index);
    const bool changed = (fresh != fresh_.end() && *fresh < index + run.tokens) || (index == committed && final_moved);
    index += run.tokens;
    if (replace_next_) run.op = SpanOp::kReplace;
    replaced = replaced || replace_next_;
    if (changed || replace_next_) frame.spans.push_back(std::move(run));
  }
  if (replace_next_ && !replaced) frame.spans.push_back({SpanOp::kReplace, committed, 0, ""});
  if (frame.spans.empty() && extent == framed_extent_ && !finished_) return;
  fresh_.clear();
  replace_next_ = false;
  framed_committed_ = committed;
  framed_extent_ = extent;
  events.emplace_back(std::move(frame));
}

}  // namespace quicksilver
