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
#include "coordinator/service/throughput_log.h"

namespace quicksilver {

using LivePtr = std::shared_ptr<LiveRequest>;

// What the shell knows of a group, while its address is known.
struct GroupPlace {
  std::string address;
  std::unique_ptr<Metrics::Group> metrics;
  // Guarded by the service's lock.
  std::string fingerprint;
  uint64_t pages = 0;  // Of its KV cache.
  uint64_t page_size = 0;
  double kv_usage = 0;                              // [0, 1]
  absl::Duration lost = -absl::InfiniteDuration();  // When it was last given up.

  void GiveUp(absl::Duration now) {
    lost = now;
    kv_usage = 0;
    metrics->up.Set(0);
    metrics->size.Set(0);
    metrics->kv_cache_usage_ratio.Set(0);
  }
};
using GroupPtr = std::shared_ptr<GroupPlace>;

// What is left to do when the lock is released.
struct Effects {
  std::vector<Connection> flushes;
  std::vector<std::pair<DropGroup, GroupPtr>> drops;
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
  void OnGroupAdded(GroupId group, const std::string& address) override;
  void OnGroupRemoved(GroupId group) override;
  absl::Status OnGroupInfo(Connection connection, const v1::GroupInfo& info) override;
  void OnHeartbeat(Connection connection, const v1::Heartbeat& heartbeat) override;
  void OnStepResult(Connection connection, const v1::StepResult& result) override;
  void OnGroupLost(Connection connection, const std::string& reason) override;

  // An update on its way from a group to a request.
  struct Target {
    LivePtr live;
    uint32_t choice;
    const v1::SequenceUpdate* update;
    LiveRequest::Applied applied;
  };

  absl::Status CheckGroup(const v1::GroupInfo& info) const;
  GroupPtr FindGroup(GroupId group) const REQUIRES_LOCK(mu_);
  void Settle(const Target& target, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  void Observe(const Target& target);
  void PrepareAndSubmit(const LivePtr& live);
  std::variant<ModelFacts, ApiError> FindModel(const std::string& name) const REQUIRES_LOCK(mu_);
  void Refuse(const LivePtr& live, ApiError error);
  void EndPreparing();
  void Execute(const Actions& actions, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  // False when nothing was sent: an update that came in while its group was being given up ended the choice, or began
  // it on another fingerprint.
  bool ExecuteSubmit(const SubmitSequence& submit, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  void ExecuteFail(const FailRequest& failed, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  void ExecuteDrop(const DropGroup& drop, absl::Duration now, Effects& effects) REQUIRES_LOCK(mu_);
  void CountRejection(const FailRequest& failed);
  absl::Duration LeftAt(const LiveRequest& live, const SubmitSequence& submit, absl::Duration now) const
      REQUIRES_LOCK(mu_);
  void LogThroughput(absl::Duration now) REQUIRES_LOCK(mu_);
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
  std::map<GroupId, GroupPtr> groups_ GUARDED_BY(mu_);
  ThroughputLog throughput_ GUARDED_BY(mu_);
  uint64_t last_request_ GUARDED_BY(mu_) = 0;
  size_t preparing_ GUARDED_BY(mu_) = 0;
  bool lame_duck_ GUARDED_BY(mu_) = false;
  bool draining_ GUARDED_BY(mu_) = false;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::thread ticker_;
};

}  // namespace quicksilver
