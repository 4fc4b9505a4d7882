#include <algorithm>
#include <utility>

#include "coordinator/text/text.h"

namespace quicksilver {
namespace {

// failure[n]: length of the longest proper prefix of `text` that is also a suffix of its first n + 1 bytes.
std::vector<size_t> PrefixFunction(const std::string& text) {
  std::vector<size_t> failure(text.size(), 0);
  for (size_t i = 1, matched = 0; i < text.size(); ++i) {
    while (matched > 0 && text[i] != text[matched]) matched = failure[matched - 1];
    if (text[i] == text[matched]) ++matched;
    failure[i] = matched;
  }
  return failure;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    std::vector<size_t> failure = PrefixFunction(stop);
    stops_.push_back({std::move(stop), std::move(failure), 0});
  }
}

// Each stop runs as its own automaton; `matched` bytes of it end at the current position, so it could still begin at
// (position - matched) and no earlier. A found match is only certain once no stop could begin before it.
StopMatcher::Output StopMatcher::Push(std::string_view text) {
  if (stopped_) return {.stopped = true};
  for (size_t i = 0; i < text.size(); ++i) {
    held_.push_back(text[i]);
    for (Stop& stop : stops_) Advance(stop, text[i]);
    if (match_ != kNone && PendingStart() >= match_) return Stopped();
  }
  const size_t keep_from = match_ != kNone ? std::min(match_, PendingStart()) : PendingStart();
  Output output{.text = held_.substr(0, keep_from)};
  held_.erase(0, keep_from);
  if (match_ != kNone) match_ -= keep_from;
  return output;
}

StopMatcher::Output StopMatcher::Finish() {
  if (stopped_) return {.stopped = true};
  if (match_ != kNone) return Stopped();
  return {.text = std::exchange(held_, {})};
}

void StopMatcher::Advance(Stop& stop, char byte) {
  while (stop.matched > 0 && stop.text[stop.matched] != byte) stop.matched = stop.failure[stop.matched - 1];
  if (stop.text[stop.matched] == byte) ++stop.matched;
  if (stop.matched < stop.text.size()) return;
  match_ = std::min(match_, held_.size() - stop.matched);
  stop.matched = stop.failure[stop.matched - 1];
}

size_t StopMatcher::PendingStart() const {
  size_t start = held_.size();
  for (const Stop& stop : stops_) start = std::min(start, held_.size() - stop.matched);
  return start;
}

StopMatcher::Output StopMatcher::Stopped() {
  stopped_ = true;
  held_.resize(match_);
  return {.text = std::exchange(held_, {}), .stopped = true};
}

}  // namespace quicksilver
