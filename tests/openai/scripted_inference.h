#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "common/mutex.h"
#include "coordinator/service/inference.h"

namespace quicksilver {

/// One thing a scripted generation does: an event, an error, or a pause.
using ScriptStep = std::variant<StartedEvent, DeltaEvent, FrameEvent, FinishedEvent, ApiError, absl::Duration>;
using Script = std::vector<ScriptStep>;

/// The last user message, or the raw prompt: what the scripts go by.
std::string LastText(const GenerateRequest& request);

/// "m", fingerprint "fp_0123456789", created 1795430400.
StartedEvent Started(uint32_t prompt_tokens = 9);
DeltaEvent Delta(std::string text, uint32_t choice = 0, uint32_t step = 1);
FinishedEvent Finished(uint32_t tokens = 3, uint32_t choice = 0, FinishReason reason = FinishReason::kStop);

/// An Inference that plays event sequences, each on a thread of its own: the only way to get exact orders, pauses and
/// faults. It keeps the contract of ResponseSink and Call.
class ScriptedInference : public Inference {
 public:
  using Writer = std::function<Script(const GenerateRequest&)>;
  explicit ScriptedInference(Writer writer) : writer_(std::move(writer)) {}

  std::unique_ptr<Call> Start(GenerateRequest request, std::shared_ptr<ResponseSink> sink) override;
  std::vector<ModelInfo> Models() const override;
  std::optional<ApiError> NotReady() const override;

  void SetNotReady(std::optional<ApiError> reason);
  std::vector<GenerateRequest> requests() const;
  int running() const { return running_; }
  /// Calls cancelled before their last event.
  int cancelled() const { return cancelled_; }

 private:
  friend class ScriptedCall;

  const Writer writer_;
  std::atomic<int> running_{0}, cancelled_{0};
  mutable Mutex mutex_;
  std::vector<GenerateRequest> requests_ GUARDED_BY(mutex_);
  std::optional<ApiError> not_ready_ GUARDED_BY(mutex_);
};

}  // namespace quicksilver
