#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "coordinator/core/generate.h"

namespace quicksilver {

/// The canvas of one choice as a client has it that applies frames in order. Pure.
class ClientCanvas {
 public:
  void Apply(const FrameEvent& frame);

  const std::string& final_text() const { return final_text_; }
  /// Runs of provisional tokens by their first token: ascending, apart from each other. What is between them, and up to
  /// extent(), is masked.
  const std::map<uint32_t, FrameSpan>& runs() const { return runs_; }
  uint32_t committed() const { return committed_; }
  uint32_t extent() const { return extent_; }
  /// The whole text, with `mask` for every masked token.
  std::string Text(const std::string& mask) const;

 private:
  void Show(const FrameSpan& span);

  std::string final_text_;
  std::map<uint32_t, FrameSpan> runs_;
  uint32_t committed_ = 0, extent_ = 0;
};

/// Frames on their way to a client that may be slow: those that wait are joined into one that leaves the client with
/// the same canvas. Holds one canvas however many are added. Pure.
class FrameQueue {
 public:
  void Add(FrameEvent frame);
  bool empty() const { return waiting_ == 0; }
  /// What brings the client up to date. Requires !empty().
  FrameEvent Take();
  /// The canvas that the client has once it applied what Take() returns.
  const ClientCanvas& canvas() const { return canvas_; }

 private:
  ClientCanvas canvas_;
  FrameEvent frame_;          // The last one that was added, without spans if it was not the only one.
  std::string unsent_final_;  // Of all that wait.
  uint32_t sent_committed_ = 0;
  size_t waiting_ = 0;
};

}  // namespace quicksilver
