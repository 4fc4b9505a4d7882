#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/core/generate.h"
#include "coordinator/text/text.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

struct ChoiceSettings {
  uint32_t choice = 0;
  uint32_t prompt_tokens = 0;
  uint32_t max_tokens = 1;
  uint32_t block_length = 1;
  std::vector<std::string> stops;
  std::vector<int32_t> stop_ids;
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

  /// Where another group can go on: the state as of the last update. A worker that does not report provisional commits
  /// speaks when a block closes, so that is a block's boundary then.
  v1::Checkpoint Record() const;

  bool finished() const { return finished_; }
  /// A stop string ended it, so the worker still runs it.
  bool stopped_here() const { return stopped_here_; }
  absl::Duration first_commit() const { return first_commit_; }
  uint32_t completion_tokens() const { return static_cast<uint32_t>(starts_.size()); }
  /// A worker was given it at `now`. `resumes`: it goes on where another one was lost or was given too much; otherwise
  /// it is the first one, or the ones before refused it.
  void OnPlaced(bool resumes, absl::Duration now) {
    placed_ = std::min(placed_, now);
    resumes_ += resumes ? 1 : 0;
    replace_next_ = true;
  }

 private:
  absl::Status TakeCommits(const v1::SequenceUpdate& update, absl::Duration now);
  absl::Status Finalise(uint32_t before, std::string& released);
  void PushFinal(int32_t token, std::string& released);
  void Match(const std::string& text, std::string& released);
  void Finish(const v1::SequenceUpdate& update, absl::Duration now, std::string& released,
              std::vector<ChoiceEvent>& events);
  void AppendFrame(const std::string& released, std::vector<ChoiceEvent>& events);
  uint32_t Committed() const;
  bool IsMasked(uint32_t index) const;
  FrameSpan RunAt(uint32_t first, uint32_t committed, uint32_t extent) const;

  const TextModel& text_;
  const ChoiceSettings settings_;
  const uint32_t end_;  // The position behind the last one that the answer may use.
  Detokenizer detokenizer_;
  StopMatcher matcher_;
  // From the prompt's end on; kMasked where nothing is committed. What the last block holds behind the answer's end
  // belongs to the sequence's state, though never to the text.
  std::vector<int32_t> tokens_;
  std::vector<uint64_t> starts_;  // For each token of the final text, the bytes of text before it.
  std::string held_;              // Text of final tokens that may still become a stop string.
  uint64_t detokenized_bytes_ = 0;
  uint64_t released_bytes_ = 0;
  uint32_t final_before_;
  uint32_t extent_;  // The canvas that is shown ends here.
  uint32_t step_ = 0;
  uint32_t block_step_ = 0;
  uint32_t block_ = 0;
  bool text_over_ = false;  // A final stop token was met.
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
