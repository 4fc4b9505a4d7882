#include "coordinator/frontend/client_canvas.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace quicksilver {

void ClientCanvas::Show(const FrameSpan& span) {
  const uint32_t end = span.first + span.tokens;
  auto run = runs_.lower_bound(span.first);
  if (run != runs_.begin() && std::prev(run)->second.first + std::prev(run)->second.tokens > span.first) --run;
  while (run != runs_.end() && run->first < end) run = runs_.erase(run);
  if (span.tokens > 0) runs_[span.first] = span;
}

void ClientCanvas::Apply(const FrameEvent& frame) {
  bool replaced = false;
  for (const FrameSpan& span : frame.spans) {
    switch (span.op) {
      case SpanOp::kFinal:
        final_text_ += span.text;
        runs_.erase(runs_.begin(), runs_.lower_bound(span.first + span.tokens));
        break;
      case SpanOp::kReplace:
        if (!std::exchange(replaced, true)) runs_.clear();
        Show(span);
        break;
      case SpanOp::kCommit:
        Show(span);
        break;
    }
  }
  committed_ = frame.committed;
  extent_ = frame.extent;
  runs_.erase(runs_.lower_bound(extent_), runs_.end());
}

std::string ClientCanvas::Text(const std::string& mask) const {
  std::string text = final_text_;
  uint32_t at = committed_;
  const auto skip_to = [&](uint32_t token) {
    for (; at < token; ++at) text += mask;
  };
  for (const auto& [first, run] : runs_) {
    skip_to(first);
    text += run.text;
    at = first + run.tokens;
  }
  skip_to(extent_);
  return text;
}

void FrameQueue::Add(FrameEvent frame) {
  canvas_.Apply(frame);
  for (const FrameSpan& span : frame.spans) {
    if (span.op == SpanOp::kFinal) unsent_final_ += span.text;
  }
  if (waiting_++ > 0) frame.spans.clear();
  frame_ = std::move(frame);
}

FrameEvent FrameQueue::Take() {
  CHECK(waiting_ > 0);
  FrameEvent frame = std::move(frame_);
  if (waiting_ > 1) {
    if (frame.committed > sent_committed_ || !unsent_final_.empty()) {
      frame.spans.push_back(
          {SpanOp::kFinal, sent_committed_, frame.committed - sent_committed_, std::move(unsent_final_)});
    }
    if (canvas_.runs().empty()) frame.spans.push_back({SpanOp::kReplace, frame.committed, 0, ""});
    for (const auto& [first, run] : canvas_.runs()) {
      frame.spans.push_back({SpanOp::kReplace, run.first, run.tokens, run.text});
    }
  }
  unsent_final_.clear();
  sent_committed_ = frame.committed;
  waiting_ = 0;
  return frame;
}

}  // namespace quicksilver
