#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/mutex.h"
#include "coordinator/service/inference_service.h"
#include "coordinator/service/live_request.h"
#include "coordinator/service/task_pool.h"

namespace quicksilver {

using LivePtr = std::shared_ptr<LiveRequest>;

// What is left to do when the lock is released.
struct Effects {
  std::vector<Connection> flushes;
  std::vector<DropGroup> drops;
  std::vector<LivePtr> deliveries;
  std::vector<std::pair<LivePtr, ApiError>> failures;
};

/// The shell around the dispatcher: threads, time, and what passes between requests and groups.
class InferenceServiceImpl : public InferenceService, private GroupListener {
 public:
  InferenceServiceImpl(InferenceOptions options, std::shared_ptr<const TextModel> text, Metrics& metrics);
  ~InferenceServiceImpl() override;

  std::unique_ptr<Call> Start(GenerateRequest request, std::shared_ptr<ResponseSink> sink) override;
  std::vector<ModelInfo> Models() const override;
  std::optional<ApiError> NotReady() const override;
  void BeginLameDuck() override;
  void BeginDrain() override;
  bool WaitIdle(absl::Duration timeout) override;
  void CancelRequest(const LivePtr& live);

 private:
  absl::Status OnGroupInfo(Connection connection, const v1::GroupInfo& info) override;
  void OnHeartbeat(Connection connection, const v1::Heartbeat& heartbeat) override;
  void OnStepResult(Connection connection, const v1::StepResult& result) override;
  void OnGroupLost(Connection connection, const std::string& reason) override;

  absl::Status CheckGroup(const v1::GroupInfo& info) const;
  void PrepareAndSubmit(const LivePtr& live);
  std::variant<ModelFacts, ApiError> FindModel(const std::string& name) const REQUIRES_LOCK(mu_);
  void Refuse(const LivePtr& live, ApiError error);
  void EndPreparing();
  void ObserveFinished(const FinishedEvent& finished, const v1::SequenceEnd* end);
  void Execute(const Actions& actions, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  void ExecuteSubmit(const SubmitSequence& submit, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  void CountRejection(Rejection rejection);
  void RunEffects(Effects& effects) EXCLUDES_LOCK(mu_);
  void TickLoop();

  const InferenceOptions options_;
  const std::shared_ptr<const TextModel> text_;
  Metrics& metrics_;  // Outlives this. Thread-safe.
  std::optional<TaskPool> pool_;
  std::unique_ptr<Cluster> cluster_;  // Thread-safe.

  mutable Mutex mu_;  // Held for bookkeeping only, never across an RPC or a sink call.
  CondVar changed_;
  Dispatcher dispatcher_ GUARDED_BY(mu_);
  absl::flat_hash_map<RequestId, LivePtr> live_ GUARDED_BY(mu_);  // What the dispatcher knows.
  std::map<std::string, ModelFacts> models_ GUARDED_BY(mu_);      // Ever served.
  std::map<GroupId, uint64_t> pages_ GUARDED_BY(mu_);             // Each group's KV pages.
  uint64_t last_request_ GUARDED_BY(mu_) = 0;
  size_t preparing_ GUARDED_BY(mu_) = 0;
  bool lame_duck_ GUARDED_BY(mu_) = false;
  bool draining_ GUARDED_BY(mu_) = false;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::thread ticker_;
};

}  // namespace quicksilver
