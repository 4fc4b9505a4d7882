#include "coordinator/service/choice_stream.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

constexpr int32_t kMasked = -1;

}  // namespace

ChoiceStream::ChoiceStream(const TextModel& text, ChoiceSettings settings)
    : text_(text),
      settings_(std::move(settings)),
      end_(settings_.prompt_tokens + settings_.max_tokens),
      detokenizer_(text),
      matcher_(settings_.stops),
      final_before_(settings_.prompt_tokens),
      extent_(settings_.prompt_tokens) {}

absl::Status ChoiceStream::Apply(const v1::SequenceUpdate& update, uint64_t epoch, absl::Duration now,
                                 std::vector<ChoiceEvent>& events) {
  if (finished_) return absl::OkStatus();
  epoch_ = epoch;
  step_ = update.step();
  block_step_ = update.block_step();
  block_ = update.block();
  RETURN_IF_ERROR(TakeCommits(update, now));
  const uint32_t was_final = final_before_;
  uint32_t final_before = std::max(update.final_before(), final_before_);
  if (update.has_end()) {
    final_before = std::max(final_before, settings_.prompt_tokens + update.end().completion_tokens());
  }
  std::string released;
  RETURN_IF_ERROR(Finalise(std::min(final_before, end_), released));
  if (stopped_here_ || update.has_end()) {
    Finish(update, now, released, events);
    return absl::OkStatus();
  }
  if (!released.empty()) events.emplace_back(DeltaEvent{settings_.choice, released, block_, step_});
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
    if (position < settings_.prompt_tokens || position >= uint64_t{end_} + settings_.block_length) {
      return absl::InternalError(absl::StrCat("commit at position ", position, " of an answer from ",
                                              settings_.prompt_tokens, " to ", end_, " in blocks of ",
                                              settings_.block_length));
    }
    const size_t index = position - settings_.prompt_tokens;
    if (index >= tokens_.size()) tokens_.resize(index + 1, kMasked);
    if (position < final_before_ && tokens_[index] != commit.token()) {
      return absl::InternalError(absl::StrCat("final position ", position, " changed"));
    }
    if (commit.token() < 0) {
      return absl::InternalError(absl::StrCat("token ", commit.token(), " at position ", position));
    }
    if (settings_.canvases && tokens_[index] == kMasked) fresh_.push_back(static_cast<uint32_t>(index));
    tokens_[index] = commit.token();
    extent_ = std::max(extent_, std::min(position + 1, end_));
    first_commit_ = std::min(first_commit_, now);
  }
  const uint64_t block_end = (uint64_t{block_} + 1) * settings_.block_length;
  extent_ = static_cast<uint32_t>(std::clamp<uint64_t>(block_end, extent_, std::max(end_, extent_)));
  return absl::OkStatus();
}

v1::Checkpoint ChoiceStream::Record() const {
  v1::Checkpoint record;
  record.set_step(step_);
  record.set_block_step(block_step_);
  record.set_final_before(final_before_);
  record.mutable_tokens()->Add(tokens_.begin(), tokens_.end());
  return record;
}

absl::Status ChoiceStream::Finalise(uint32_t before, std::string& released) {
  for (; final_before_ < before && !stopped_here_; ++final_before_) {
    const size_t index = final_before_ - settings_.prompt_tokens;
    if (text_over_) continue;
    if (index >= tokens_.size() || tokens_[index] == kMasked) {
      return absl::InternalError(absl::StrCat("final position ", final_before_, " has no token"));
    }
    PushFinal(tokens_[index], released);
  }
  return absl::OkStatus();
}

void ChoiceStream::PushFinal(int32_t token, std::string& released) {
  if (std::find(settings_.stop_ids.begin(), settings_.stop_ids.end(), token) != settings_.stop_ids.end()) {
    text_over_ = true;
    return;
  }
  starts_.push_back(detokenized_bytes_);
  const std::string text = detokenizer_.Push(token);
  detokenized_bytes_ += text.size();
  if (!text.empty()) Match(text, released);
}

void ChoiceStream::Match(const std::string& text, std::string& released) {
  StopMatcher::Output output = matcher_.Push(text);
  released_bytes_ += output.text.size();
  released += output.text;
  stopped_here_ = output.stopped;
  held_ += text;
  held_.erase(0, output.text.size());
}

void ChoiceStream::Finish(const v1::SequenceUpdate& update, absl::Duration now, std::string& released,
                          std::vector<ChoiceEvent>& events) {
  const v1::SequenceEnd& end = update.end();
  FinishReason reason = FinishReason::kStop;
  if (!stopped_here_) {
    const bool cut = end.reason() == v1::SequenceEnd::REASON_LENGTH || end.reason() == v1::SequenceEnd::REASON_DEADLINE;
    if (cut) reason = FinishReason::kLength;
    const std::string rest = detokenizer_.Finish();
    if (!rest.empty()) Match(rest, released);
  }
  bool stopped = stopped_here_;
  if (!stopped) {
    const StopMatcher::Output output = matcher_.Finish();
    released_bytes_ += output.text.size();
    released += output.text;
    stopped = output.stopped;
  }
  held_.clear();
  if (stopped) {
    reason = FinishReason::kStop;
    // Tokens that begin behind the text that was let through are no part of it.
    while (!starts_.empty() && starts_.back() >= released_bytes_) starts_.pop_back();
  }
  if (!released.empty()) events.emplace_back(DeltaEvent{settings_.choice, released, block_, step_});
  text_over_ = true;
  finished_ = true;
  if (settings_.canvases) AppendFrame(released, events);
  // The last group counts what it did itself; the others were lost with their counts, or cancelled.
  const bool whole = resumes_ == 0;
  FinishedEvent finished{.choice = settings_.choice,
                         .reason = reason,
                         .completion_tokens = completion_tokens(),
                         .forwards = update.has_end() ? end.forwards() : step_,
                         .cached_tokens = whole ? end.cached_tokens() : 0,
                         .resumes = resumes_,
                         .preemptions = whole ? end.preemptions() : 0,
                         .paced_steps = whole ? end.paced_steps() : 0,
                         .deadline_reached = end.reason() == v1::SequenceEnd::REASON_DEADLINE};
  if (first_commit_ != absl::InfiniteDuration()) {
    finished.time_to_first_token_seconds = absl::ToDoubleSeconds(first_commit_ - settings_.accepted);
  }
  // Without one worker's word for all of it the prefills, and what passed between groups, are counted in.
  finished.decode_seconds = update.has_end() && whole ? end.decode_seconds() : absl::ToDoubleSeconds(now - placed_);
  events.emplace_back(finished);
  if (update.has_end()) stopped_here_ = false;  // Nothing is left to be cancelled.
}

// The tokens whose text has been released whole.
uint32_t ChoiceStream::Committed() const {
  if (finished_) return completion_tokens();
  const auto behind = std::lower_bound(starts_.begin(), starts_.end(), released_bytes_);
  const auto begun = static_cast<uint32_t>(behind - starts_.begin());
  const uint64_t text_end = behind == starts_.end() ? detokenized_bytes_ : *behind;
  const bool incomplete = behind == starts_.end() && detokenizer_.holds_back();
  return begun > 0 && (text_end > released_bytes_ || incomplete) ? begun - 1 : begun;
}

// Of a token behind the committed ones.
bool ChoiceStream::IsMasked(uint32_t index) const { return index >= tokens_.size() || tokens_[index] == kMasked; }

// The run of provisional tokens that begins at `first`. What may still become a stop string is one, too: it has not
// been sent and may be taken back.
FrameSpan ChoiceStream::RunAt(uint32_t first, uint32_t committed, uint32_t extent) const {
  FrameSpan run{.op = SpanOp::kCommit, .first = first};
  const bool leads = first == committed;
  // A character that final tokens began goes on here.
  Detokenizer detokenizer = leads ? detokenizer_ : Detokenizer(text_);
  if (leads) run.text = held_;
  for (uint32_t index = first; index < extent && !IsMasked(index); ++index) {
    if (index >= completion_tokens()) run.text += detokenizer.Push(tokens_[index]);
    ++run.tokens;
  }
  run.text += detokenizer.Finish();
  return run;
}

void ChoiceStream::AppendFrame(const std::string& released, std::vector<ChoiceEvent>& events) {
  const uint32_t committed = Committed();
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
