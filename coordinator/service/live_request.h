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

  /// What became of a choice with one update.
  enum class Outcome { kGoesOn, kEndedByWorker, kStoppedHere, kFailed };
  struct Applied {
    Outcome outcome = Outcome::kGoesOn;
    ApiError error;                         ///< With kFailed.
    std::optional<FinishedEvent> finished;  ///< With kEndedByWorker and kStoppedHere.
  };

  /// Before admission: the tokenised form. `text` outlives this.
  void Prepared(PreparedRequest prepared, const ModelFacts& model, const TextModel& text,
                absl::Duration canvas_interval);
  /// A choice goes to a group: the message to send. The first one starts the stream.
  std::unique_ptr<v1::CoordinatorMessage> OnPlaced(uint32_t choice, SequenceId sequence, const std::string& fingerprint,
                                                   absl::Duration now);
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

 private:
  using Event = std::variant<StartedEvent, DeltaEvent, FrameEvent, FinishedEvent, ApiError>;
  Applied ApplyLocked(uint32_t choice, const v1::SequenceUpdate& update, uint64_t epoch, absl::Duration now)
      REQUIRES_LOCK(mu_);

  const RequestId id_;
  const GenerateRequest request_;
  const absl::Duration accepted_;
  const int64_t created_;
  uint32_t prompt_tokens_ = 0;
  uint32_t max_tokens_ = 0;

  mutable Mutex mu_;
  CondVar idle_;
  std::shared_ptr<ResponseSink> sink_ GUARDED_BY(mu_);  // Null after the last event.
  std::vector<std::unique_ptr<v1::CoordinatorMessage>> submits_ GUARDED_BY(mu_);
  std::vector<std::unique_ptr<ChoiceStream>> choices_ GUARDED_BY(mu_);
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
