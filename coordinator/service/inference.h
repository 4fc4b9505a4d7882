#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/core/generate.h"

namespace quicksilver {

/// Where the events of one request go. Called in order, never two at once, on threads of the service, which must not be
/// blocked. The last call is either the OnFinished of the last choice or OnError; nothing comes after Call::Cancel()
/// has returned.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void OnStarted(const StartedEvent& event) = 0;
  virtual void OnDelta(const DeltaEvent& event) = 0;
  virtual void OnFrame(const FrameEvent& event) = 0;
  virtual void OnFinished(const FinishedEvent& event) = 0;
  virtual void OnError(const ApiError& error) = 0;
};

/// A request on its way. Dropping it cancels it.
class Call {
 public:
  virtual ~Call() = default;
  /// The client is gone: frees everything, all the way to the worker's pages. No sink call is running or comes after
  /// it.
  virtual void Cancel() = 0;
};

/// What the coordinator does; both front ends call it and decide nothing. Thread-safe.
class Inference {
 public:
  virtual ~Inference() = default;
  /// Tokenises, validates, admits, places, streams. Returns at once: tokenisation runs on a bounded pool. Every refusal
  /// comes out of OnError.
  virtual std::unique_ptr<Call> Start(GenerateRequest request, std::shared_ptr<ResponseSink> sink) = 0;
  virtual std::vector<ModelInfo> Models() const = 0;
  /// Can finish a request that starts now (reliability.md P5). The reason when not.
  virtual std::optional<ApiError> NotReady() const = 0;
};

}  // namespace quicksilver
