#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "common/mutex.h"
#include "coordinator/core/dispatcher.h"
#include "coordinator/core/ids.h"
#include "coordinator/service/choice_stream.h"
#include "coordinator/service/inference.h"
#include "coordinator/service/prepare.h"

namespace quicksilver {

/// One request from acceptance to its last event: its choices, and the order of what its sink hears. Thread-safe.
class LiveRequest {
 public:
  LiveRequest(RequestId id, GenerateRequest request, std::shared_ptr<ResponseSink> sink, absl::Duration accepted,
              int64_t created);

  /// Where a choice goes.
  struct Placement {
    uint32_t choice = 0;
    SequenceId sequence{};
    std::string fingerprint;
    GroupId group{};
    SubmitCause cause = SubmitCause::kNew;
    absl::Duration left_at;  ///< With another cause: when it left its last group.
  };
  struct LastPlace {
    GroupId group{};
    absl::Duration since;
  };
  /// What became of a choice with one update.
  enum class Outcome {
    kNothing,  ///< It was not for the sequence that the choice is now, or the choice was over.
    kGoesOn,
    kEndedByWorker,
    kStoppedHere,
    kReturned,  ///< The group does not want it; another one may.
    kFailed,
  };
  struct Applied {
    Outcome outcome = Outcome::kNothing;
    ApiError error = {};                         ///< With kFailed.
    std::optional<FinishedEvent> finished = {};  ///< With kEndedByWorker and kStoppedHere.
    uint32_t output_tokens = 0;                  ///< Of the choice so far, on whichever groups.
    uint32_t new_tokens = 0;                     ///< Of those: by this update.
    uint32_t new_forwards = 0;
    std::optional<absl::Duration> first_block;  ///< From acceptance, when the first final tokens came with this update.
    std::optional<absl::Duration> resumed;      ///< Since it left its last group, when this is the first one since.
    bool diverged = false;                      ///< With kFailed: the next group went on with other tokens.
  };

  /// Before admission: the tokenised form. `text` outlives this.
  void Prepared(PreparedRequest prepared, const ModelFacts& model, const TextModel& text,
                absl::Duration canvas_interval, absl::Duration deadline);
  /// What the rate headers are to say.
  void SetRates(TenantRates rates);
  /// A choice goes to a group, from where it stands now: the message to send. Null when nothing is to be sent: it has
  /// ended meanwhile, or it has begun on another fingerprint, which the dispatcher had not heard of.
  std::unique_ptr<v1::CoordinatorMessage> OnPlaced(const Placement& placement, absl::Duration now);
  bool HasEnded(uint32_t choice) const;
  uint32_t completion_tokens(uint32_t choice) const;
  /// Where OnPlaced() put the choice last, and when. Requires: it did.
  LastPlace last_place(uint32_t choice) const;
  /// Queues the events that follow from an update of the group's incarnation `epoch`; Deliver() sends them.
  Applied Apply(uint32_t choice, const v1::SequenceUpdate& update, uint64_t epoch, absl::Duration now);
  /// Queues the error as the last event, unless the last one is queued already.
  void Fail(ApiError error);
  /// Calls the sink with what is queued; returns early when another thread is at it, which then sends everything.
  /// Nothing of the service may be locked.
  void Deliver();
  /// Nothing is sent afterwards, and no sink call is running, unless this is called out of it.
  void Cancel();
  bool cancelled() const;
  /// True when Cancel() came before the last event was queued.
  bool cut_off() const;

  RequestId id() const { return id_; }
  const GenerateRequest& request() const { return request_; }
  absl::Duration accepted() const { return accepted_; }
  uint32_t prompt_tokens() const { return prompt_tokens_; }
  uint32_t max_tokens() const { return max_tokens_; }
  /// When the client's or the server's deadline is; valid after Prepared().
  absl::Duration deadline() const { return deadline_; }
  /// When the best answer so far is wanted. Infinite: no latency target.
  absl::Duration target() const;

 private:
  using Event = std::variant<StartedEvent, DeltaEvent, FrameEvent, FinishedEvent, ApiError>;
  struct Choice {
    std::unique_ptr<ChoiceStream> stream;
    SequenceId sequence{};  // The one that it is now; what older ones say is dropped.
    uint32_t placements = 0;
    LastPlace place;
    std::optional<absl::Duration> left_at;  // Its last group, until the first update of the next.
    bool first_block = false;               // Seen.
    uint32_t step = 0;
  };
  Applied ApplyLocked(Choice& choice, const v1::SequenceUpdate& update, uint64_t epoch, absl::Duration now)
      REQUIRES_LOCK(mu_);
  std::optional<Applied> Refused(const v1::SequenceEnd& end) const;

  const RequestId id_;
  const GenerateRequest request_;
  const absl::Duration accepted_;
  const int64_t created_;
  uint32_t prompt_tokens_ = 0;
  uint32_t max_tokens_ = 0;
  uint64_t prompt_characters_ = 0;
  absl::Duration deadline_ = absl::InfiniteDuration();

  mutable Mutex mu_;
  CondVar idle_;
  std::shared_ptr<ResponseSink> sink_ GUARDED_BY(mu_);  // Null after the last event.
  v1::Submit submit_ GUARDED_BY(mu_);  // Of every choice, for as long as it may have to go on elsewhere.
  TenantRates rates_ GUARDED_BY(mu_);
  std::vector<Choice> choices_ GUARDED_BY(mu_);
  std::deque<Event> pending_ GUARDED_BY(mu_);
  uint32_t unfinished_ GUARDED_BY(mu_) = 0;  // Choices.
  bool started_ GUARDED_BY(mu_) = false;
  std::string fingerprint_ GUARDED_BY(mu_);  // Of the group that it was placed on.
  bool closed_ GUARDED_BY(mu_) = false;      // The last event is queued, or nobody listens.
  bool cancelled_ GUARDED_BY(mu_) = false;
  bool cut_off_ GUARDED_BY(mu_) = false;
  bool delivering_ GUARDED_BY(mu_) = false;
  std::thread::id deliverer_ GUARDED_BY(mu_);
};

}  // namespace quicksilver
