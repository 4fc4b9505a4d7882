#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/http/exchange.h"
#include "common/mutex.h"
#include "coordinator/frontend/http/openai_answer.h"
#include "coordinator/frontend/http/openai_frontend.h"
#include "coordinator/service/inference.h"

namespace quicksilver {

/// One chat or completion request from its validation to its last byte: starts its generations, writes their events
/// to the exchange, and cancels what is left when the exchange ends. Its exchange keeps it alive.
class OpenAiGeneration : public std::enable_shared_from_this<OpenAiGeneration> {
 public:
  OpenAiGeneration(OpenAiRequest request, std::string id, std::string route, const OpenAiOptions& options,
                   OpenAiObserver& observer, std::shared_ptr<http::Exchange> exchange);

  /// On the connection's thread, before the handler returns.
  void Start(Inference& inference);

 private:
  class Sink;

  // From the service's threads, for generation `prompt`.
  void OnStarted(size_t prompt, const StartedEvent& event) EXCLUDES_LOCK(mutex_);
  void OnDelta(size_t prompt, const DeltaEvent& event) EXCLUDES_LOCK(mutex_);
  void OnFrame(size_t prompt, const FrameEvent& event) EXCLUDES_LOCK(mutex_);
  void OnFinished(size_t prompt, const FinishedEvent& event) EXCLUDES_LOCK(mutex_);
  void OnError(const ApiError& fault) EXCLUDES_LOCK(mutex_);

  void OnEnd(http::EndReason reason) EXCLUDES_LOCK(mutex_);
  void Pump() REQUIRES_LOCK(mutex_);
  void WriteFrames() EXCLUDES_LOCK(mutex_);

  OpenAiRequest request_;
  const std::string id_, route_;
  const OpenAiOptions& options_;
  OpenAiObserver& observer_;
  const std::shared_ptr<http::Exchange> exchange_;
  std::vector<std::unique_ptr<Call>> calls_;  // On the connection's thread.

  Mutex mutex_;
  OpenAiAnswer answer_ GUARDED_BY(mutex_);
  std::string unwritten_ GUARDED_BY(mutex_);  ///< Events that the exchange had no room for.
  TenantRates rates_ GUARDED_BY(mutex_);      ///< As the last generation began.
  int status_ GUARDED_BY(mutex_) = 0;         ///< Of the head; 0: none yet.
  bool failed_ GUARDED_BY(mutex_) = false;
  bool finished_ GUARDED_BY(mutex_) = false;
};

}  // namespace quicksilver
