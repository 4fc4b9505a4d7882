#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/core/generate.h"
#include "coordinator/service/choice_text.h"
#include "coordinator/text/text.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

struct ChoiceSettings {
  uint32_t choice = 0;
  uint32_t prompt_tokens = 0;  ///< The answer begins behind them.
  uint32_t max_tokens = 1;
  uint32_t suffix_tokens = 0;  ///< They follow the answer in the canvas.
  v1::Grid grid = v1::GRID_ABSOLUTE;
  uint32_t block_length = 1;
  uint32_t positions_max = 0;  ///< The canvas ends here at most.
  std::vector<int32_t> given;  ///< Of the answer from its beginning: what stays as it is, -1 where masked.
  std::vector<int32_t> draft;  ///< The same of what it begins with; on the canvas grid it is written nowhere.
  std::vector<std::string> stops;
  std::vector<int32_t> stop_ids;
  bool log_probabilities = false;
  bool canvases = false;
  absl::Duration canvas_interval = absl::Milliseconds(20);  ///< Between frames while nothing becomes final.
  absl::Duration accepted;                                  ///< When the request came in.
};

using ChoiceEvent = std::variant<DeltaEvent, FrameEvent, FinishedEvent>;

/// The canvas of one choice and what its client has seen of it: takes the commits of the worker, gives text.
class ChoiceStream {
 public:
  /// `text` outlives this.
  ChoiceStream(const TextModel& text, ChoiceSettings settings);

  /// Appends the events that follow from `update` of the group's incarnation `epoch`; the last one of all is
  /// FinishedEvent. Internal: the worker broke its contract (a final position changed, has no token, or lies outside
  /// the answer).
  absl::Status Apply(const v1::SequenceUpdate& update, uint64_t epoch, absl::Duration now,
                     std::vector<ChoiceEvent>& events);

  /// Where another group can go on: the state as of the last update, or, behind OnPlaced(), as of the beginning of the
  /// open block when that has state of its own. A worker that does not report provisional commits speaks when a block
  /// closes, so that is a block's boundary in any case.
  v1::Checkpoint Record() const;

  bool finished() const { return finished_; }
  /// A stop string ended it, so the worker still runs it.
  bool stopped_here() const { return stopped_here_; }
  absl::Duration first_commit() const { return first_commit_; }
  uint32_t completion_tokens() const { return answer_.tokens(); }
  /// A worker is given it at `now`. `resumes`: it goes on where another one was lost or was given too much; otherwise
  /// it is the first one, or the ones before refused it.
  void OnPlaced(bool resumes, absl::Duration now);

 private:
  /// What the worker said of a token.
  struct Score {
    float log_probability = kNoLogProbability;
    std::vector<v1::TopToken> top;
  };

  absl::Status TakeCommits(const v1::SequenceUpdate& update, absl::Duration now);
  void Write(uint32_t index, const v1::Commit& commit);
  void ForgetOpenBlock();
  void TakeGiven(size_t from);
  uint32_t CanvasEnd() const;
  absl::Status Finalise(uint32_t before);
  void PushFinal(int32_t token);
  WrittenToken Told(uint32_t index, uint64_t offset) const;
  /// Appends the text that may be sent by now; returns it.
  std::string AppendDelta(std::vector<ChoiceEvent>& events);
  void Finish(const v1::SequenceUpdate& update, absl::Duration now, std::vector<ChoiceEvent>& events);
  FinishedEvent MakeFinished(const v1::SequenceUpdate& update, bool stopped, absl::Duration now) const;
  void AppendFrame(const std::string& released, std::vector<ChoiceEvent>& events);
  bool IsMasked(uint32_t index) const;
  FrameSpan RunAt(uint32_t first, uint32_t committed, uint32_t extent) const;

  const TextModel& text_;
  const ChoiceSettings settings_;
  const uint32_t end_;  // The position behind the last one that the answer may use.
  ChoiceText answer_;
  // From the prompt's end on; kMasked where nothing is committed. What the last block holds behind the answer's end
  // belongs to the sequence's state, though never to the text.
  std::vector<int32_t> tokens_;
  std::vector<Score> scores_;  // Of tokens_, with log_probabilities.
  uint32_t told_ = 0;          // Tokens of the deltas so far, with log_probabilities.
  uint32_t final_before_;
  uint32_t extent_;  // The canvas that is shown ends here.
  uint32_t step_ = 0;
  uint32_t block_step_ = 0;
  uint32_t block_ = 0;
  bool block_state_ = false;
  uint32_t canvas_length_ = 0;        // As the worker last said, prompt and suffix counted; 0: never.
  uint32_t block_canvas_length_ = 0;  // The same when the open block was opened.
  bool text_over_ = false;            // A final stop token was met.
  bool stopped_here_ = false;
  bool finished_ = false;
  absl::Duration placed_ = absl::InfiniteDuration();
  uint32_t resumes_ = 0;
  absl::Duration first_commit_ = absl::InfiniteDuration();
  // What the frames so far have told.
  absl::Duration last_frame_ = -absl::InfiniteDuration();
  std::vector<uint32_t> fresh_;  // Tokens that were committed since the last one.
  uint32_t framed_committed_ = 0;
  uint32_t framed_extent_ = 0;
  uint64_t epoch_ = 0;
  bool replace_next_ = true;
};

}  // namespace quicksilver
