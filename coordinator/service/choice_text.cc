#include "coordinator/service/choice_text.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/utf8.h"

namespace quicksilver {

ChoiceText::ChoiceText(const TextModel& text, std::vector<std::string> stops, bool whole_tokens)
    : whole_tokens_(whole_tokens), detokenizer_(text), matcher_(std::move(stops)) {}

void ChoiceText::Push(int32_t token) {
  starts_.push_back(detokenized_bytes_);
  const std::string text = detokenizer_.Push(token);
  whole_.push_back(!detokenizer_.holds_back());
  detokenized_bytes_ += text.size();
  if (!text.empty()) Match(text);
}

void ChoiceText::Match(const std::string& text) {
  const StopMatcher::Output output = matcher_.Push(text);
  passed_bytes_ += output.text.size();
  stopped_ = output.stopped;
  held_ += text;
}

void ChoiceText::Finish() {
  if (std::exchange(finished_, true)) return;
  if (!stopped_) {
    const std::string rest = detokenizer_.Finish();
    detokenized_bytes_ += rest.size();
    if (!rest.empty()) Match(rest);
  }
  if (!stopped_) {
    const StopMatcher::Output output = matcher_.Finish();
    passed_bytes_ += output.text.size();
    stopped_ = output.stopped;
  }
  held_.resize(passed_bytes_ - taken_bytes_);
  // Tokens that begin behind the text that was let through are no part of it.
  while (stopped_ && !starts_.empty() && starts_.back() >= passed_bytes_) starts_.pop_back();
}

ChoiceText::Piece ChoiceText::Take() {
  size_t tokens = starts_.size();
  uint64_t bytes = passed_bytes_;
  if (whole_tokens_ && !finished_) {
    tokens = told_;
    for (size_t i = told_; i < starts_.size() && EndOf(i) <= passed_bytes_; ++i) {
      if (whole_[i]) tokens = i + 1;
    }
    bytes = tokens == 0 ? 0 : EndOf(tokens - 1);
  }
  Piece piece{.text = held_.substr(0, bytes - taken_bytes_)};
  held_.erase(0, bytes - taken_bytes_);
  if (whole_tokens_) {
    for (; told_ < tokens; ++told_) {
      const size_t before = starts_[told_] - taken_bytes_;
      piece.offsets.push_back(taken_characters_ + CountCodePoints(std::string_view(piece.text).substr(0, before)));
    }
    taken_characters_ += CountCodePoints(piece.text);
  }
  taken_bytes_ = bytes;
  return piece;
}

uint32_t ChoiceText::taken() const {
  if (finished_) return tokens();
  const auto behind = std::lower_bound(starts_.begin(), starts_.end(), taken_bytes_);
  const auto begun = static_cast<uint32_t>(behind - starts_.begin());
  const uint64_t text_end = behind == starts_.end() ? detokenized_bytes_ : *behind;
  const bool incomplete = behind == starts_.end() && detokenizer_.holds_back();
  return begun > 0 && (text_end > taken_bytes_ || incomplete) ? begun - 1 : begun;
}

}  // namespace quicksilver
