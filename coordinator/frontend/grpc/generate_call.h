#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "common/mutex.h"
#include "coordinator/frontend/client_canvas.h"
#include "coordinator/frontend/grpc/convert.h"
#include "coordinator/metrics.h"
#include "coordinator/service/inference.h"

namespace quicksilver {

/// One Generate stream: the reactor that writes it and the sink that feeds it. One write is under way at a time; for a
/// client that reads slowly the deltas of a choice that wait are joined, and so are its frames: what waits is at most
/// the text of the answer and one canvas a choice. Thread-safe.
class GenerateCall : public grpc::ServerWriteReactor<v1::GenerateEvent>,
                     public ResponseSink,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  /// All outlive the call. `on_done` is told when the reactor is over.
  GenerateCall(grpc::CallbackServerContext& context, Inference& inference, Metrics& metrics,
               std::function<void(const std::shared_ptr<GenerateCall>&)> on_done);

  /// Once, right after construction: answers with an error or starts the generation. `tenant_header`: as in
  /// GrpcServerOptions.
  void Begin(const v1::GenerateRequest& proto, const GrpcLimits& limits, const std::string& tenant_header);
  /// Cuts the client off when one write has been waiting for it since before `since`.
  void CutIfStalled(absl::Duration since);

  void OnStarted(const StartedEvent& event) override;
  void OnDelta(const DeltaEvent& event) override;
  void OnFrame(const FrameEvent& event) override;
  void OnFinished(const FinishedEvent& event) override;
  void OnError(const ApiError& error) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  /// `last`: the stream ends well behind it.
  void Push(v1::GenerateEvent event, bool last = false);
  std::variant<std::string, ApiError> Tenant(const std::string& header) const;
  void End(const ApiError& error);
  /// Starts the next write, or finishes when all is written.
  void Pump();
  bool NextEvent() REQUIRES_LOCK(mu_);
  void Count(int code);

  grpc::CallbackServerContext& context_;
  Inference& inference_;
  Metrics& metrics_;
  const std::function<void(const std::shared_ptr<GenerateCall>&)> on_done_;
  std::string request_id_;
  std::string tenant_;
  std::shared_ptr<GenerateCall> self_;  // Until OnDone.
  std::unique_ptr<Call> call_;          // Set in Begin(), before any reaction can run.
  v1::GenerateEvent writing_;           // Not changed while its write is under way.

  Mutex mu_;
  std::deque<v1::GenerateEvent> outbox_ GUARDED_BY(mu_);       // All but frames.
  std::vector<FrameQueue> frames_ GUARDED_BY(mu_);             // By choice.
  std::optional<absl::Duration> write_began_ GUARDED_BY(mu_);  // While one is under way.
  std::optional<grpc::Status> end_ GUARDED_BY(mu_);
  uint32_t unfinished_ GUARDED_BY(mu_) = 0;  // Choices.
  std::string finish_reason_ GUARDED_BY(mu_);
  bool finish_called_ GUARDED_BY(mu_) = false;
  bool counted_ GUARDED_BY(mu_) = false;
};

}  // namespace quicksilver
