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

absl::Status ChoiceStream::Apply(const v1::SequenceUpdate& update, absl::Duration now,
                                 std::vector<ChoiceEvent>& events) {
  if (finished_) return absl::OkStatus();
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
  if (!released.empty()) events.emplace_back(DeltaEvent{settings_.choice, std::move(released), block_, step_});
  const bool due = final_before_ > was_final || now - last_canvas_ >= settings_.canvas_interval;
  if (settings_.canvases && due) {
    last_canvas_ = now;
    events.emplace_back(Canvas());
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
  if (settings_.canvases) final_text_ += text;
}

void ChoiceStream::Finish(const v1::SequenceUpdate& update, absl::Duration now, std::string& released,
                          std::vector<ChoiceEvent>& events) {
  const v1::SequenceEnd& end = update.end();
  FinishReason reason = FinishReason::kStop;
  if (!stopped_here_) {
    if (end.reason() == v1::SequenceEnd::REASON_LENGTH) reason = FinishReason::kLength;
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
  if (stopped) {
    reason = FinishReason::kStop;
    // Tokens that begin behind the text that was let through are no part of it.
    while (!starts_.empty() && starts_.back() >= released_bytes_) starts_.pop_back();
    final_text_.resize(std::min<size_t>(final_text_.size(), released_bytes_));
  }
  if (!released.empty()) events.emplace_back(DeltaEvent{settings_.choice, std::move(released), block_, step_});
  text_over_ = true;
  if (settings_.canvases) events.emplace_back(Canvas());
  FinishedEvent finished{.choice = settings_.choice,
                         .reason = reason,
                         .completion_tokens = completion_tokens(),
                         .forwards = update.has_end() ? end.forwards() : step_};
  if (first_commit_ != absl::InfiniteDuration()) {
    finished.time_to_first_token_seconds = absl::ToDoubleSeconds(first_commit_ - settings_.accepted);
  }
  // Without the worker's word the prefill is counted in.
  finished.decode_seconds = update.has_end() ? end.decode_seconds() : absl::ToDoubleSeconds(now - placed_);
  events.emplace_back(finished);
  finished_ = true;
  if (update.has_end()) stopped_here_ = false;  // Nothing is left to be cancelled.
}

CanvasEvent ChoiceStream::Canvas() const {
  CanvasEvent canvas{.choice = settings_.choice, .step = step_, .block = block_};
  // What may still become a stop string has not been sent and may be taken back.
  const size_t sent = std::min(released_bytes_, final_text_.size());
  const auto tokens = static_cast<uint32_t>(std::lower_bound(starts_.begin(), starts_.end(), sent) - starts_.begin());
  if (tokens > 0) canvas.spans.push_back({SpanState::kFinal, final_text_.substr(0, sent), tokens});
  const uint32_t held = completion_tokens() - std::min(tokens, completion_tokens());
  if (held > 0) canvas.spans.push_back({SpanState::kProvisional, final_text_.substr(sent), held});
  if (text_over_) return canvas;
  for (uint32_t position = final_before_; position < extent_;) {
    const auto token_at = [&](uint32_t p) {
      const size_t index = p - settings_.prompt_tokens;
      return index < tokens_.size() ? tokens_[index] : kMasked;
    };
    const bool masked = token_at(position) == kMasked;
    CanvasSpan span{.state = masked ? SpanState::kMasked : SpanState::kProvisional};
    Detokenizer detokenizer(text_);
    for (; position < extent_ && (token_at(position) == kMasked) == masked; ++position) {
      if (!masked) span.text += detokenizer.Push(token_at(position));
      ++span.tokens;
    }
    if (!masked) span.text += detokenizer.Finish();
    canvas.spans.push_back(std::move(span));
  }
  return canvas;
}

}  // namespace quicksilver
